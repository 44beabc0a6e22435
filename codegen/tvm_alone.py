"""Imports TVM without torch, where both are installed: TVM would load it, which takes twice as long
as TVM itself, and nothing here hands it a tensor of torch.

Whoever imports TVM imports this before it.
"""

from __future__ import annotations

import sys

_has_torch = "torch" in sys.modules
if not _has_torch:
    sys.modules["torch"] = None  # type: ignore[assignment]  # which Python takes for not installed
try:
    import tvm  # noqa: F401
finally:
    if not _has_torch:
        del sys.modules["torch"]
