"""Reads models from files: one implementation of `ModelSource` and `Checkpoint` per format."""
