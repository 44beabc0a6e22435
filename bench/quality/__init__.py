"""What a model's numbers are worth: how well it predicts, and how far one is from another."""
