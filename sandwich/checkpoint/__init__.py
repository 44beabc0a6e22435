"""Reads the files of a checkpoint: one reader per format, raw values out; nothing about models."""
