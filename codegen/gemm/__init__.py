"""The GEMM generator: one loop nest, a register tile for each kind of arithmetic."""
