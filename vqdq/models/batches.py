"""Minibatches out of recorded calls: pairs of a prompt and a step, put together across steps.

A recorded call holds many prompts at one step; a gradient over one step says little about the
others. Where all calls have the same structure their rows are mixed, each with its own timestep,
which every denoiser of diffusers takes. Where they have not (texts of different length), whole
calls are used as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from vqdq.models.trajectory import Call, Trajectories

TIMESTEP = "timestep"


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Arguments for a denoiser and what the teacher made of them.

    Attributes:
        args, kwargs: as in a recorded call, in float32.
        output: float32 [pictures * halves, ...]; under guidance the blank half comes first.
        steps: int64 [pictures], from 0.
        guided: the batch holds two halves.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: torch.Tensor
    steps: torch.Tensor
    guided: bool


class Samples:
    """Every picture at every step of recorded trajectories, to draw batches from.

    Attributes:
        num_steps: steps of the trajectories.
        mixes: rows of different calls can share a batch.
    """

    def __init__(self, trajectories: Trajectories, device: torch.device) -> None:
        self._calls = trajectories.calls
        self._device = device
        self.num_steps = 1 + max(call.step for call in self._calls)
        self.mixes = all(_alike(self._calls[0], call) for call in self._calls)
        self._by_step: list[list[tuple[int, int]]] = [[] for _ in range(self.num_steps)]
        for index, call in enumerate(self._calls):
            self._by_step[call.step] += [(index, row) for row in range(len(call.prompts))]

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """Returns `count` pictures of random prompts, their steps spread evenly.

        Without `mixes` one random call.
        """
        if not self.mixes:
            return self._whole(int(torch.randint(len(self._calls), (), generator=generator)))
        spread = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        chosen: list[tuple[int, int]] = []
        for step in (spread * self.num_steps).long().clamp(max=self.num_steps - 1).tolist():
            rows = self._by_step[step]
            chosen.append(rows[int(torch.randint(len(rows), (), generator=generator))])
        return self._mixed(chosen)

    def spread(self, per_step: int, count: int) -> list[Batch]:
        """Returns batches of `count` pictures that hold `per_step` prompts of every step.

        Which prompts turns from step to step, so that all have their say. Without `mixes` one
        call of every step.
        """
        if not self.mixes:
            turn = (rows[step % len(rows)][0] for step, rows in enumerate(self._by_step))
            return [self._whole(index) for index in turn]
        chosen: list[tuple[int, int]] = []
        for step, rows in enumerate(self._by_step):
            wanted = min(per_step, len(rows))
            chosen += [rows[(step * wanted + turn) % len(rows)] for turn in range(wanted)]
        return [
            self._mixed(chosen[start : start + count]) for start in range(0, len(chosen), count)
        ]

    def _whole(self, index: int) -> Batch:
        call = self._calls[index]
        return Batch(
            args=self._placed(call.args),
            kwargs=self._placed(call.kwargs),
            output=self._placed(call.output),
            steps=torch.full((len(call.prompts),), call.step),
            guided=call.guided,
        )

    def _mixed(self, chosen: Sequence[tuple[int, int]]) -> Batch:
        calls = [self._calls[index] for index, _ in chosen]
        rows = [row for _, row in chosen]
        guided = calls[0].guided
        steps = torch.tensor([call.step for call in calls])
        if guided:
            rows += [row + len(call.prompts) for row, call in zip(rows, calls, strict=True)]
            calls = [*calls, *calls]
        first = calls[0]
        args = tuple(
            self._column([call.args[place] for call in calls], calls, rows, timestep=place == 1)
            for place in range(len(first.args))
        )
        kwargs = {
            key: self._column(
                [call.kwargs[key] for call in calls], calls, rows, timestep=key == TIMESTEP
            )
            for key in first.kwargs
        }
        output = self._column([call.output for call in calls], calls, rows, timestep=False)
        return Batch(args=args, kwargs=kwargs, output=output, steps=steps, guided=guided)

    def _column(
        self, values: list[Any], calls: Sequence[Call], rows: Sequence[int], *, timestep: bool
    ) -> Any:
        """Returns one argument for all rows: values[i] is what calls[i] was given for it."""
        first = values[0]
        if timestep and isinstance(first, torch.Tensor) and first.numel() == 1:
            return self._placed(torch.stack([value.reshape(()) for value in values]))
        if isinstance(first, torch.Tensor):
            if not _by_row(first, calls[0]):
                return self._placed(first)
            return self._placed(
                torch.stack([value[row] for value, row in zip(values, rows, strict=True)])
            )
        if isinstance(first, Mapping):
            keys = cast(Mapping[str, Any], first)
            return {
                key: self._column([value[key] for value in values], calls, rows, timestep=False)
                for key in keys
            }
        if isinstance(first, list | tuple):
            places = range(len(cast(Sequence[Any], first)))
            return type(cast(Any, first))(
                self._column([value[place] for value in values], calls, rows, timestep=False)
                for place in places
            )
        return first

    def _placed(self, value: Any) -> Any:
        """Returns `value` with its tensors on the device, floating ones in float32."""
        if isinstance(value, torch.Tensor):
            return value.to(self._device, torch.float32 if value.is_floating_point() else None)
        if isinstance(value, Mapping):
            return {key: self._placed(v) for key, v in cast(Mapping[str, Any], value).items()}
        if isinstance(value, list | tuple):
            return type(cast(Any, value))(self._placed(v) for v in cast(Sequence[Any], value))
        return value


def _by_row(tensor: torch.Tensor, call: Call) -> bool:
    return tensor.ndim > 0 and tensor.shape[0] == call.output.shape[0]


def _alike(first: Call, other: Call) -> bool:
    """Whether rows of two calls fit into one batch."""
    if first.guided != other.guided or len(first.args) != len(other.args):
        return False
    if first.kwargs.keys() != other.kwargs.keys():
        return False
    return all(
        _fits(mine, theirs, first, other, timestep=place == 1)
        for place, (mine, theirs) in enumerate(zip(first.args, other.args, strict=True))
    ) and all(
        _fits(mine, other.kwargs[key], first, other, timestep=key == TIMESTEP)
        for key, mine in first.kwargs.items()
    )


def _fits(mine: Any, theirs: Any, first: Call, other: Call, *, timestep: bool) -> bool:
    if type(mine) is not type(theirs):
        return False
    if isinstance(mine, torch.Tensor):
        if timestep and mine.numel() == 1 and theirs.numel() == 1:
            return True
        if _by_row(mine, first) and _by_row(theirs, other):
            return mine.shape[1:] == theirs.shape[1:]
        return mine is theirs or torch.equal(mine, theirs)
    if isinstance(mine, Mapping):
        known = cast(Mapping[str, Any], mine)
        return known.keys() == theirs.keys() and all(
            _fits(value, theirs[key], first, other, timestep=False) for key, value in known.items()
        )
    if isinstance(mine, list | tuple):
        return len(cast(Sequence[Any], mine)) == len(theirs) and all(
            _fits(a, b, first, other, timestep=False) for a, b in zip(mine, theirs, strict=True)
        )
    return bool(mine == theirs)
