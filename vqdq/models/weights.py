"""Safetensors files: headers checked, tensors read one at a time, files written whole or not.

Reading the header ourselves costs nothing and says what is wrong with a damaged file; writing the
file ourselves lets a large model pass through one tensor at a time. The bytes are those of the
safetensors library, which the tests compare.
"""

from __future__ import annotations

import math
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from vqdq.durable import atomic
from vqdq.errors import UserError
from vqdq.models.parsing import parse_object
from vqdq.tensors import TensorSpec, dtype_of, safetensors_header, safetensors_order

_DAMAGED = "The file is damaged or incomplete: copy or download it again."
_MAX_HEADER = 32_000_000  # 300,000 tensors; the largest known checkpoint has 3,000
_MAX_BYTES = 2**63 - 1
_MAX_DIMENSIONS = 8


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
        """Returns one tensor, on the CPU and in its own memory.

        Raises:
            UserError: the file changed or vanished since it was opened, or the disk has a fault.
        """
        try:
            with safe_open(self.path, framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{key} cannot be read: {error}.", where=str(self.path), remedy=_DAMAGED
            ) from error
        return tensor.clone()


def open_weights(path: Path) -> WeightFile:
    """Returns the header of a safetensors file after checking that the file can be what it says.

    Reads the header only, and nothing that it promises is allocated.

    Raises:
        UserError: unreadable, not safetensors, or with a header that contradicts itself or the
            file's size.
    """
    place = str(path)
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise UserError("is no file.", where=place, remedy="Check the path.")
        size = facts.st_size
        with path.open("rb") as file:
            head = file.read(8)
            length = int.from_bytes(head, "little")
            if len(head) < 8 or not 2 <= length <= min(size - 8, _MAX_HEADER):
                raise _no_safetensors(path, head + file.read(56), size)
            text = file.read(length)
    except OSError as error:
        raise unreadable(path, error) from error
    entries = parse_object(text, place, remedy=_DAMAGED, what="the header ")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(x, str) for x in metadata.values()):
        raise UserError("the metadata are malformed.", where=place, remedy=_DAMAGED)
    tensors: dict[str, TensorSpec] = {}
    spans: list[tuple[int, int, str]] = []
    for key, entry in entries.items():
        tensors[key], start, stop = _entry(key, entry, place)
        spans.append((start, stop, key))
    end = 0
    for start, stop, key in sorted(spans):
        if start != end:
            fact = "overlaps another tensor" if start < end else "leaves a gap before it"
            raise UserError(f"{key} {fact}.", where=place, remedy=_DAMAGED)
        end = stop
    promised = 8 + length + end
    if size != promised:
        fact = "is cut short" if size < promised else "is longer than it says"
        raise UserError(
            f"{fact}: it holds {size:,} bytes, its header promises {promised:,}.",
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


def pickled(path: Path) -> UserError:
    """Returns the error for a pickle, whatever its name is."""
    return UserError(
        "is a pickled checkpoint, which can run any program when it is opened; it is refused.",
        where=str(path),
        remedy="Use the safetensors version of the model, or convert it where you trust the file "
        "(save_pretrained writes safetensors).",
    )


def _no_safetensors(path: Path, start: bytes, size: int) -> UserError:
    """Returns the error for a file whose first bytes are no header's length."""
    place = str(path)
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return pickled(path)
    if start.startswith(b"GGUF"):
        return UserError(
            "is a GGUF file: its weights are quantized already.",
            where=place,
            remedy="Start from the checkpoint in 16 or 32 bits that it was made of.",
        )
    if start.startswith(b"version https://git-lfs"):
        return UserError(
            "is not a safetensors file but the pointer to one (Git LFS).",
            where=place,
            remedy="Run `git lfs pull` in the model's folder, or download the model again.",
        )
    if size == 0:
        return UserError(
            "is not a safetensors file: it is empty (0 bytes).", where=place, remedy=_DAMAGED
        )
    fact = ""
    if size >= 8:
        length = int.from_bytes(start[:8], "little")
        fact = f": its header would take {length:,} bytes, the file has {size:,}"
    return UserError(f"is not a safetensors file{fact}.", where=place, remedy=_DAMAGED)


def _entry(key: str, entry: Any, place: str) -> tuple[TensorSpec, int, int]:
    try:
        code, shape = entry["dtype"], tuple(entry["shape"])
        start, stop = entry["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, start, stop))
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(
            f"the entry of {key} is malformed.", where=place, remedy=_DAMAGED
        ) from error
    if not whole or len(shape) > _MAX_DIMENSIONS:
        raise UserError(f"the entry of {key} is malformed.", where=place, remedy=_DAMAGED)
    dtype = dtype_of(code) if isinstance(code, str) else None
    if dtype is None:
        small = str(code).startswith(("F8", "F4", "F6"))
        raise UserError(
            f"{key} is stored as {code}"
            + (": it is quantized already." if small else ", which is not supported."),
            where=place,
            remedy="Start from a checkpoint in 16 or 32 bits.",
        )
    if stop - start != math.prod(shape) * dtype.itemsize or stop > _MAX_BYTES:
        raise UserError(f"the size of {key} is wrong.", where=place, remedy=_DAMAGED)
    return TensorSpec(name=key, dtype=dtype, shape=shape), start, stop
