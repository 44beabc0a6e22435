"""Reads GGUF files: header, architecture, tokenizer, tensors."""
