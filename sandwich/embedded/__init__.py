"""Where the model that travels with the package lies."""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
SAMPLE_FILE = "validation_sample.txt"  # in the model's folder: a text it has not seen
"""A Hugging Face folder: config, weights, tokenizer with chat template, model card."""
