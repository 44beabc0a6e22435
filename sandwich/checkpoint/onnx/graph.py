"""A graph in an ONNX file: who makes a value, and where the constants lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import NodeProto, TensorProto

from sandwich.checkpoint.source import StoredTensor
from sandwich.errors import ModelError

# As safetensors spells the types of constants; bf16 as bit patterns.
_DTYPES: Final[dict[int, tuple[str, np.dtype[Any]]]] = {
    TensorProto.FLOAT: ("F32", np.dtype(np.float32)),
    TensorProto.FLOAT16: ("F16", np.dtype(np.float16)),
    TensorProto.BFLOAT16: ("BF16", np.dtype(np.uint16)),
    TensorProto.UINT8: ("U8", np.dtype(np.uint8)),
    TensorProto.INT64: ("I64", np.dtype(np.int64)),
}
NUMPY: Final = dict(_DTYPES.values())
_PASSING: Final = ("Cast", "Identity")  # values come out of them as they went in
_NO_OP: Final = "nothing"


@dataclass(frozen=True)
class Constant:
    """A constant of the graph. data: its bytes if they are in the graph itself."""

    name: str
    tensor: StoredTensor
    data: bytes | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape


class OnnxGraph:
    """The graph in `file`, whose external data are not read yet."""

    def __init__(self, file: Path) -> None:
        """Raises ModelError for a file that is damaged or names data outside of its folder."""
        self.file = file
        try:
            model = onnx.load(file, load_external_data=False)
        except (OSError, DecodeError, ValueError) as error:
            raise ModelError(f"{file}: cannot be read as ONNX ({error}); fetch it again") from error
        self._makers = {value: node for node in model.graph.node for value in node.output if value}
        self.outputs = [value.name for value in model.graph.output]
        self.constants = {each.name: self._constant(each) for each in model.graph.initializer}

    def _constant(self, tensor: TensorProto) -> Constant:
        dtype, numpy = _DTYPES.get(tensor.data_type, (f"type {tensor.data_type}", np.dtype("V1")))
        shape = tuple(tensor.dims)
        nbytes = int(np.prod(shape, dtype=np.int64)) * numpy.itemsize
        said = {entry.key: entry.value for entry in tensor.external_data}
        if not said:
            stored = StoredTensor(dtype, shape, self.file, 0, nbytes)
            data = onnx.numpy_helper.to_array(tensor).tobytes()
            return Constant(tensor.name, stored, data)
        name = said.get("location", "")
        if not name or Path(name).name != name:
            raise ModelError(
                f"{self.file}: {tensor.name} lies in {name[:80]!r}; the name of a file beside the "
                "graph is needed"
            )
        offset = int(said.get("offset", 0))
        file = self.file.parent / name
        size = file.stat().st_size if file.is_file() else -1
        if offset < 0 or size < offset + nbytes:
            found = "is missing" if size < 0 else f"has {size} bytes"
            raise ModelError(
                f"{file}: {found}, but {tensor.name} ends at {offset + nbytes}; fetch it again"
            )
        return Constant(tensor.name, StoredTensor(dtype, shape, file, offset, nbytes))

    def maker(self, value: str, *ops: str) -> NodeProto:
        """The node that makes a value, which must be one of `ops`. Raises ModelError."""
        node = self._makers.get(value)
        while node is not None and node.op_type in _PASSING:
            node = self._makers.get(node.input[0])
        if node is None or node.op_type not in ops:
            found = _NO_OP if node is None else f"{node.op_type} ({node.name})"
            raise self.error(f"{value} is made by {found}, where {' or '.join(ops)} is known")
        return node

    def is_made_by(self, value: str, *ops: str) -> bool:
        """Whether `maker` would find one."""
        try:
            self.maker(value, *ops)
        except ModelError:
            return False
        return True

    def constant(self, value: str) -> Constant:
        """A value that must be a constant. Raises ModelError."""
        if value not in self.constants:
            raise self.error(f"{value} is computed, where a constant is known")
        return self.constants[value]

    def error(self, problem: str) -> ModelError:
        """The error that the graph is not of a decoder that is known."""
        return ModelError(
            f"{self.file}: the graph is not of a decoder that is known: {problem}. Give the model "
            "it was exported from"
        )


def attributes(node: NodeProto) -> dict[str, Any]:
    """Of a node, by name."""
    return {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
