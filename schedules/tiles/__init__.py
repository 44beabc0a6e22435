"""Tiles of each GEMM: defaults, the tuner's space, trials, tuned records applied to plans."""
