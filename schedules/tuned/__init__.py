"""Tuned records that come with the package, one JSONL file for each CPU that was tuned.

A file is what `sandwich tune --export` wrote there. Holds no code.
"""
