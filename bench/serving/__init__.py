"""A load generator for any server that speaks the OpenAI API, and what it saw of it."""
