"""What a model is: its configuration, the names of its tensors, its position tables; no weights."""
