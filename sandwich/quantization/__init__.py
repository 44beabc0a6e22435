"""Rounding the weights of a model before it is served, and writing them down."""
