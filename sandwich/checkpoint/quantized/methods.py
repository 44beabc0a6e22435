"""The ways in which folders are quantised, by what config.json calls them.

`read_method` refuses what cannot be read, with the reason; `open_folder` opens what can.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from sandwich.checkpoint import codes
from sandwich.checkpoint.codes import CONFIG_KEY, CodedCheckpoint, CodedFormats
from sandwich.checkpoint.fields import Fields
from sandwich.checkpoint.quantized.awq import Awq
from sandwich.checkpoint.quantized.compressed_tensors import CompressedTensors
from sandwich.checkpoint.quantized.folder import Method, QuantizedFolder
from sandwich.checkpoint.quantized.fp8 import Fp8
from sandwich.checkpoint.quantized.gptq import Gptq
from sandwich.checkpoint.safetensors import SafetensorsCheckpoint

METHODS: Final[dict[str, Callable[[Fields], Method]]] = {
    "gptq": Gptq.of,
    "awq": Awq.of,
    "compressed-tensors": CompressedTensors.of,
    "fp8": Fp8.of,
}
_ORIGINAL: Final = "take the original checkpoint, and --quantization for fewer bits"
# Why others are not read.
_REFUSED: Final = {
    "bitsandbytes": "its codes are looked up in a table of values for groups whose scales are "
    f"quantised again, a form for GPUs that no kernel here multiplies; {_ORIGINAL}",
    "mxfp4": f"it is for mixtures of experts; {_ORIGINAL}",
}


def read_method(fields: Fields) -> Method | CodedFormats | None:
    """How the folder with this config.json is quantised, None if it is not. ModelError for what is
    not read.
    """
    if not fields.has(CONFIG_KEY):
        return None
    stored = fields.object(CONFIG_KEY)
    method = stored.get("quant_method")
    if method == codes.METHOD:
        return codes.read_formats(stored)
    if method not in METHODS:
        known = f"supported: {', '.join(METHODS)}; {_ORIGINAL}"
        raise stored.error("quant_method", _REFUSED.get(str(method), known))
    return METHODS[str(method)](stored)


def open_folder(folder: Path, fields: Fields) -> SafetensorsCheckpoint:
    """The tensors of the folder with this config.json. Raises ModelError."""
    method = read_method(fields)
    if method is None:
        return SafetensorsCheckpoint(folder)
    if isinstance(method, CodedFormats):
        return CodedCheckpoint(folder, method)
    return QuantizedFolder(folder, method)
