"""Folders whose matrices other programs have quantised: GPTQ, AWQ, compressed-tensors, FP8."""
