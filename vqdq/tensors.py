"""What a file of tensors weighs, in closed form: the reason a plan can promise exact bytes.

A `TensorSpec` is a tensor without its data. The size of a safetensors file follows from the specs
alone: 8 bytes of length, a JSON header padded to 8 bytes, then the data (safetensors format,
"Format" section).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
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


LARGEST_SHARD = 10_000_000_000
"""Bytes of data in one weight file, as diffusers cuts them. Smaller files would load in no less
memory: what is copied out of a file is let go of at once (`vqdq.models.mapped`)."""


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


def safetensors_order(specs: Iterable[TensorSpec]) -> list[TensorSpec]:
    """Returns the specs in the order of their data in the file: wide dtypes first, then by name."""
    return sorted(specs, key=lambda spec: (-_alignment(spec.dtype), spec.name))


def safetensors_header(specs: Iterable[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """Returns everything in the file before the data: the length, and the JSON padded to 8 bytes.

    Offsets in the header depend on the order of the tensors, and their decimal digits on the
    offsets, so the header is built and measured instead of estimated.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for spec in safetensors_order(specs):
        end = offset + spec.num_bytes
        header[spec.name] = {
            "dtype": _CODES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    padded = text + b" " * (-len(text) % 8)
    return len(padded).to_bytes(8, "little") + padded


def safetensors_bytes(specs: Iterable[TensorSpec], metadata: Mapping[str, str]) -> int:
    """Returns the exact size in bytes of the safetensors file that holds `specs` and `metadata`."""
    known = tuple(specs)
    return len(safetensors_header(known, metadata)) + sum(spec.num_bytes for spec in known)


def shards(specs: Iterable[TensorSpec]) -> list[list[TensorSpec]]:
    """Returns the specs in their order, cut into files of at most `LARGEST_SHARD` bytes of data.

    One larger tensor is a file of its own.
    """
    found: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        if found[-1] and size + spec.num_bytes > LARGEST_SHARD:
            found.append([])
            size = 0
        found[-1].append(spec)
        size += spec.num_bytes
    return found


def sharded_bytes(specs: Iterable[TensorSpec], metadata: Mapping[str, str]) -> int:
    """Returns the exact size in bytes of all weight files that hold `specs`, their index aside."""
    return sum(safetensors_bytes(part, metadata) for part in shards(specs))


def dtype_of(code: str) -> torch.dtype | None:
    """Returns the dtype that a safetensors header calls `code`, or None for one we do not know."""
    return next((dtype for dtype, name in _CODES.items() if name == code), None)


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


def uncast(tensor: torch.Tensor, fn: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Returns `tensor` after the move in `fn` but never its cast: `fn` only sees its bytes."""
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    moved = fn(flat)
    if moved.dtype != torch.uint8:  # module.type(...) casts integers too
        moved = flat.to(moved.device)
    return moved.view(tensor.dtype).reshape(tensor.shape)
