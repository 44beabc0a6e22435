"""Mechanism: values (which kernel, which tile) become TVM functions and shared libraries. The only
importer of tvm.
"""
