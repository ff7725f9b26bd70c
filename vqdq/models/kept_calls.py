"""Recorded calls on the disk, a file for each batch of prompts: safetensors and JSON, no pickle.

A long recording that was interrupted goes on after the last whole batch, and calls that are read
from a file are mapped, so that they take no memory until they are made again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import safe_open

from vqdq.errors import UserError
from vqdq.models.trajectory import Call, Trajectories, record
from vqdq.models.weights import open_weights, write_weights
from vqdq.progress import Event, Report, silent
from vqdq.tensors import TensorSpec

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_LATENTS = "latents"


def record_kept(
    folder: Path,
    pipeline: DiffusionPipeline,
    prompts: Sequence[str],
    *,
    steps: int,
    guidance: float,
    seed: int = 0,
    batch_size: int = 8,
    report: Report = silent,
) -> Trajectories:
    """Returns what `record` returns, each batch kept in `folder` or found there.

    Calls with an argument that is neither a tensor nor a plain value stay in memory alone.

    Args:
        report: stage "record", one unit a prompt; may raise `Cancelled`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    calls: list[Call] = []
    ends: list[torch.Tensor] = []
    for start in range(0, len(prompts), batch_size):
        report(Event(stage="record", done=start, total=len(prompts)))
        part = prompts[start : start + batch_size]
        found = keep_batch(folder, pipeline, part, start, steps=steps, guidance=guidance, seed=seed)
        calls += found[0]
        ends.append(found[1])
    report(Event(stage="record", done=len(prompts), total=len(prompts)))
    return Trajectories(
        prompts=tuple(prompts),
        steps=steps,
        guidance=guidance,
        calls=tuple(calls),
        latents=torch.cat(ends),
        seed=seed,
    )


def keep_batch(
    folder: Path,
    pipeline: DiffusionPipeline,
    prompts: Sequence[str],
    start: int,
    *,
    steps: int,
    guidance: float,
    seed: int,
) -> tuple[list[Call], torch.Tensor]:
    """Returns the calls and latents of one batch, kept in `batch_file(start)` or found there.

    Args:
        prompts: of this batch alone; `start`: the number of its first prompt among all.
        seed: of the whole recording; prompt i begins with the noise of seed + i.
    """
    path = folder / batch_file(start)
    wanted = {"prompts": list(prompts), "steps": steps, "guidance": guidance, "seed": seed}
    facts = {"recording": json.dumps(wanted)}
    found = _read(path, facts)
    if found is not None:
        return found
    made = record(
        pipeline,
        prompts,
        steps=steps,
        guidance=guidance,
        seed=seed + start,
        batch_size=len(prompts),
    )
    moved = [replace(c, prompts=tuple(start + at for at in c.prompts)) for c in made.calls]
    _write(path, facts, moved, made.latents)
    return _read(path, facts) or (moved, made.latents)


def batch_file(start: int) -> str:
    """Returns the name of the file of the batch that begins with prompt `start`."""
    return f"{start:06d}.safetensors"


def _write(
    path: Path, facts: Mapping[str, str], calls: Sequence[Call], latents: torch.Tensor
) -> None:
    """Writes the calls of a batch, whole or not at all; equal tensors once."""
    tensors: dict[str, torch.Tensor] = {_LATENTS: latents}
    names: dict[int, str] = {}

    def name(tensor: torch.Tensor) -> str:
        if id(tensor) not in names:
            names[id(tensor)] = f"{len(names):06d}"
            tensors[names[id(tensor)]] = tensor
        return names[id(tensor)]

    try:
        entries = [
            {
                "step": call.step,
                "timestep": call.timestep,
                "prompts": call.prompts,
                "args": _described(call.args, name),
                "kwargs": _described(call.kwargs, name),
                "output": name(call.output),
            }
            for call in calls
        ]
    except TypeError:
        return  # something that JSON cannot say
    specs = [TensorSpec.of(key, tensor) for key, tensor in tensors.items()]
    said = {**facts, "calls": json.dumps(entries)}
    write_weights(path, specs, said, lambda spec: tensors[spec.name])


def _read(path: Path, facts: Mapping[str, str]) -> tuple[list[Call], torch.Tensor] | None:
    """Returns the calls and the latents in a file, or None when it is not there or another's.

    A tensor that several calls share is one object again.
    """
    if not path.is_file():
        return None
    try:
        metadata = dict(open_weights(path).metadata)
    except UserError:
        return None
    entries = json.loads(metadata.pop("calls", "[]"))
    if metadata != dict(facts):
        return None
    found: dict[str, torch.Tensor] = {}
    with safe_open(path, framework="pt") as file:
        for key in open_weights(path).tensors:
            found[key] = file.get_tensor(key)
    calls = [
        Call(
            step=entry["step"],
            timestep=entry["timestep"],
            prompts=tuple(entry["prompts"]),
            args=_restored(entry["args"], found),
            kwargs=_restored(entry["kwargs"], found),
            output=found[entry["output"]],
        )
        for entry in entries
    ]
    return calls, found[_LATENTS]


def _described(value: Any, name: Callable[[torch.Tensor], str]) -> Any:
    """Returns `value` as JSON: one key that says the kind, and the content."""
    if isinstance(value, torch.Tensor):
        return {"tensor": name(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    if type(value) is dict:
        items = cast(dict[str, Any], value).items()
        return {"dict": {key: _described(item, name) for key, item in items}}
    if type(value) is list or type(value) is tuple:
        parts = [_described(item, name) for item in cast(Sequence[Any], value)]
        return {type(value).__name__: parts}
    raise TypeError(type(value).__name__)


def _restored(entry: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Returns the value that `_described` described."""
    ((kind, content),) = cast(dict[str, Any], entry).items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _restored(item, tensors) for key, item in content.items()}
    if kind in ("list", "tuple"):
        parts = [_restored(item, tensors) for item in content]
        return parts if kind == "list" else tuple(parts)
    return content
