"""Decoders out of ONNX graphs: their weights and sizes, not the graph itself, are what is used."""
