"""Executors: the compiled one, the NumPy reference and the null one, behind one protocol."""
