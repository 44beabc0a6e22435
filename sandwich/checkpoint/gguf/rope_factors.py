"""Scalings of rotations out of the tensors that a GGUF file has in their place.

For Llama 3.1's, the converter of llama.cpp evaluates the formula and stores a divisor for each pair
of dims; the parameters are found again, and must give the same divisors. For LongRoPE's, it stores
the two lists of divisors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sandwich.checkpoint.gguf.header import Header
from sandwich.checkpoint.source import StoredTensor
from sandwich.errors import ModelError

# As every Llama 3.1, 3.2 and 3.3 has them.
_LOW, _HIGH, _ORIGINAL = 1.0, 4.0, 8192
_TOLERANCE: Final = 1e-4

Floats = npt.NDArray[np.float32]


def read_factors(tensor: StoredTensor) -> Floats:
    """The divisors. Raises ModelError if they are not a vector of float32."""
    if tensor.dtype != "F32" or len(tensor.shape) != 1:
        raise ModelError(
            f"{tensor.file}: divisors of rotations are {tensor.dtype} {list(tensor.shape)}, not a "
            "vector of F32; fetch it again"
        )
    return np.fromfile(tensor.file, "<f4", tensor.shape[0], offset=tensor.offset)


def llama3_scaling(factors: Floats, config: Mapping[str, Any], file: Path) -> dict[str, Any] | None:
    """`rope_scaling` of a config.json; None if nothing is scaled.

    Raises ModelError for factors that are not those of the formula.
    """
    theta, most = config.get("rope_theta"), float(np.max(factors, initial=1.0))
    if np.all(factors == 1.0):
        return None
    if not isinstance(theta, float) or not np.allclose(
        factors, _expected(most, theta, 2 * len(factors)), rtol=_TOLERANCE
    ):
        raise ModelError(
            f"{file}: rope_freqs.weight holds other factors than Llama 3.1's; only those are "
            "supported"
        )
    return {
        "rope_type": "llama3",
        "factor": round(most, 3),
        "low_freq_factor": _LOW,
        "high_freq_factor": _HIGH,
        "original_max_position_embeddings": _ORIGINAL,
    }


def longrope_scaling(factors: Mapping[str, list[float]], header: Header) -> dict[str, Any]:
    """`rope_scaling` of a config.json with the lists `factors`."""
    prefix = f"{header.metadata['general.architecture']}.rope.scaling"
    return {
        "rope_type": "longrope",
        "attention_factor": header.metadata.get(f"{prefix}.attn_factor"),
        "original_max_position_embeddings": header.metadata.get(
            f"{prefix}.original_context_length"
        ),
        **factors,
    }


def _expected(factor: float, theta: float, head_dim: int) -> npt.NDArray[np.float64]:
    """Divisors: 1 for fast waves, `factor` for slow ones, blended between."""
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    share = np.clip((_ORIGINAL / wavelengths - _LOW) / (_HIGH - _LOW), 0.0, 1.0)
    divisors: npt.NDArray[np.float64] = 1.0 / ((1.0 - share) / factor + share)
    return divisors
