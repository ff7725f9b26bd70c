"""The weights of a component: one file, or shards with the index that diffusers and transformers
read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from vqdq.durable import write_text
from vqdq.models.weights import write_weights
from vqdq.tensors import TensorSpec, shards


def write_shards(
    path: Path,
    specs: Sequence[TensorSpec],
    metadata: Mapping[str, str],
    read: Callable[[TensorSpec], torch.Tensor],
) -> int:
    """Writes all tensors, one in memory at a time; returns the bytes of the weight files.

    Args:
        path: of the single file; shards are `<stem>-00001-of-0000n.safetensors` beside
            `<stem>.safetensors.index.json`.
        read: gives the tensor of a spec; its dtype and shape are checked.
    """
    parts = shards(specs)
    if len(parts) == 1:
        return write_weights(path, specs, metadata, read)
    places: dict[str, str] = {}
    size = 0
    for number, part in enumerate(parts, start=1):
        name = f"{path.stem}-{number:05d}-of-{len(parts):05d}{path.suffix}"
        size += write_weights(path.with_name(name), part, metadata, read)
        places |= {spec.name: name for spec in part}
    index = {
        "metadata": {"total_size": sum(spec.num_bytes for spec in specs)},
        "weight_map": places,
    }
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    write_text(path.with_name(f"{path.name}.index.json"), text)
    return size
