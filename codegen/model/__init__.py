"""What a model computes: its text, and the tables of its tensors."""
