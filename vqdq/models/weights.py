"""Safetensors files: headers checked, tensors read one at a time, files written whole or not.

Reading the header ourselves costs nothing and says what is wrong with a damaged file; writing the
file ourselves lets a large model pass through one tensor at a time. The bytes are those of the
safetensors library, which the tests compare.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open

from vqdq.durable import atomic
from vqdq.errors import UserError
from vqdq.tensors import TensorSpec, dtype_of, safetensors_header, safetensors_order

_DAMAGED = "The file is damaged or incomplete: copy or download it again."
_MAX_HEADER = 100_000_000  # the limit of the safetensors library


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightFile:
    """A checked header.

    Attributes:
        path: of the file.
        header: its raw bytes, for fingerprints.
        tensors: specs by key.
        metadata: the texts in `__metadata__`.
    """

    path: Path
    header: bytes
    tensors: Mapping[str, TensorSpec]
    metadata: Mapping[str, str]

    def read(self, key: str) -> torch.Tensor:
        """Returns one tensor, on the CPU and in its own memory."""
        with safe_open(self.path, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(key)
        return tensor.clone()


def open_weights(path: Path) -> WeightFile:
    """Returns the header of a safetensors file after checking that the file can be what it says.

    Raises:
        UserError: unreadable, not safetensors, or shorter or longer than its header promises.
    """
    place = str(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            length = int.from_bytes(head, "little")
            if len(head) < 8 or not 2 <= length <= min(size - 8, _MAX_HEADER):
                raise UserError("is not a safetensors file.", where=place, remedy=_DAMAGED)
            text = file.read(length)
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        parsed: object = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError("the header is not JSON.", where=place, remedy=_DAMAGED) from error
    if not isinstance(parsed, dict):
        raise UserError("the header is not an object.", where=place, remedy=_DAMAGED)
    entries = cast(dict[str, Any], parsed)
    metadata = entries.pop("__metadata__", {})
    tensors: dict[str, TensorSpec] = {}
    end = 0
    for key, entry in entries.items():
        tensors[key], stop = _entry(key, entry, place)
        end = max(end, stop)
    if size != 8 + length + end:
        raise UserError(
            f"holds {size} bytes, its header promises {8 + length + end}.",
            where=place,
            remedy=_DAMAGED,
        )
    return WeightFile(path=path, header=head + text, tensors=tensors, metadata=metadata)


def write_weights(
    path: Path,
    specs: Sequence[TensorSpec],
    metadata: Mapping[str, str],
    read: Callable[[TensorSpec], torch.Tensor],
) -> int:
    """Writes a safetensors file, one tensor in memory at a time, and returns its size in bytes.

    The file appears under its name only when it is complete and on the disk.

    Args:
        read: gives the tensor of a spec; its dtype and shape are checked.
    """
    with atomic(path) as file:
        file.write(safetensors_header(specs, metadata))
        for spec in safetensors_order(specs):
            tensor = read(spec)
            if TensorSpec.of(spec.name, tensor) != spec:
                raise UserError(
                    f"is {tensor.dtype} {list(tensor.shape)}, "
                    f"planned was {spec.dtype} {list(spec.shape)}.",
                    where=spec.name,
                    remedy="The method broke its promise: report it with the recipe.",
                )
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)
    return path.stat().st_size


def unreadable(path: Path, error: OSError) -> UserError:
    """Returns the error for a file or folder that the system does not let us read."""
    if isinstance(error, FileNotFoundError):
        return UserError("does not exist.", where=str(path), remedy="Check the path.")
    if isinstance(error, PermissionError):
        return UserError(
            "may not be read.", where=str(path), remedy="Ask for permission or copy it elsewhere."
        )
    return UserError(
        f"cannot be read: {error.strerror or error}.", where=str(path), remedy="Check the disk."
    )


def _entry(key: str, entry: Any, place: str) -> tuple[TensorSpec, int]:
    try:
        dtype = dtype_of(entry["dtype"])
        shape = tuple(int(size) for size in entry["shape"])
        start, stop = (int(offset) for offset in entry["data_offsets"])
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(
            f"the entry of {key} is malformed.", where=place, remedy=_DAMAGED
        ) from error
    if dtype is None:
        raise UserError(
            f"{key} is stored as {entry['dtype']}, which is not supported.",
            where=place,
            remedy="Start from a checkpoint in 16 or 32 bits.",
        )
    if stop - start != math.prod(shape) * dtype.itemsize or start < 0:
        raise UserError(f"the size of {key} is wrong.", where=place, remedy=_DAMAGED)
    return TensorSpec(name=key, dtype=dtype, shape=shape), stop
