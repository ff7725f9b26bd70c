"""A checkpoint in pieces that are whole files: each at most 32 MiB, and readable by itself.

So it passes through channels that take only small files, and a piece that was lost or damaged on
the way is named. The pieces of a checkpoint are written first, then the index that names them, by
one rename: a process that is killed leaves the old checkpoint or the new one.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vqdq import durable
from vqdq.errors import UserError

MOST_BYTES = 32 << 20
INDEX = "state.json"
_HEADER_BYTES = 1 << 20  # of a piece, at most
_ENTRIES = 4096  # of a piece, so that they fit into its header


def save(folder: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, float]) -> None:
    """Writes a checkpoint to `folder` in place of the one that is there.

    Args:
        tensors: on any device and in any memory format; facts: finite numbers beside them.
    """
    old = _index(folder) or {"generation": 0, "pieces": []}
    generation = int(old["generation"]) + 1
    pieces: list[dict[str, Any]] = []
    placed: dict[str, dict[str, Any]] = {}
    open_piece: dict[str, Tensor] = {}
    left = MOST_BYTES - _HEADER_BYTES

    def close() -> None:
        name = f"state-{generation:06d}-{len(pieces):03d}.safetensors"
        save_file(open_piece, folder / name)
        content = (folder / name).read_bytes()
        assert len(content) <= MOST_BYTES, name
        digest = hashlib.sha256(content).hexdigest()
        pieces.append({"file": name, "bytes": len(content), "sha256": digest})
        open_piece.clear()

    for name, tensor in tensors.items():
        flat = tensor.detach().contiguous().reshape(-1)
        parts: list[int] = []
        start = 0
        while start < len(flat) or not parts:
            room = left // flat.itemsize
            if len(open_piece) >= _ENTRIES or (room == 0 and len(flat)):
                close()
                left = MOST_BYTES - _HEADER_BYTES
                continue
            taken = flat[start : start + room].cpu().clone()
            open_piece[f"{name}@{start}"] = taken
            parts.append(len(pieces))
            left -= taken.nbytes
            start += len(taken)
        placed[name] = {"shape": list(tensor.shape), "pieces": parts}
    if open_piece:
        close()
    index = {
        "generation": generation,
        "facts": dict(facts),
        "pieces": pieces,
        "tensors": placed,
    }
    durable.write_text(folder / INDEX, json.dumps(index, allow_nan=False))
    for piece in old["pieces"]:
        (folder / str(piece["file"])).unlink(missing_ok=True)


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, float]] | None:
    """Returns the tensors, on the processor, and the facts of the checkpoint in `folder`; None
    where there is none.

    Raises:
        UserError: a piece is missing, or is not what was written.
    """
    index = _index(folder)
    if index is None:
        return None
    contents: list[dict[str, Tensor]] = []
    for piece in index["pieces"]:
        path = folder / str(piece["file"])
        found = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(found).hexdigest() != piece["sha256"]:
            raise UserError(
                "is damaged." if found else "is missing.",
                where=str(path),
                remedy="Copy the checkpoint again, all files that its state.json names.",
            )
        contents.append(load_file(path))
    tensors: dict[str, Tensor] = {}
    for name, placed in index["tensors"].items():
        parts: list[Tensor] = []
        start = 0
        for number in placed["pieces"]:
            parts.append(contents[number][f"{name}@{start}"])
            start += len(parts[-1])
        assert start == math.prod(placed["shape"]), name
        tensors[name] = torch.cat(parts).reshape(placed["shape"])
    return tensors, dict(index["facts"])


def facts(folder: Path) -> dict[str, float]:
    """Returns the numbers of the checkpoint in `folder`, {} where there is none."""
    index = _index(folder)
    return {} if index is None else dict(index["facts"])


def _index(folder: Path) -> dict[str, Any] | None:
    path = folder / INDEX
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
