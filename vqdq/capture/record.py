"""Statistics of what goes into each layer while a picture is drawn: by channel, position and step.

`record` watches a denoiser through forward hooks, which are gone when its block ends, however it
ends. Every watched layer gets a row of scalars for each step; the layers in `detail`, and all
layers at the steps in `detail_steps`, also get their channels, positions and histogram. Activations
themselves are never kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from vqdq.capture.records import ActivationRecord, LayerRecord, Scalars
from vqdq.capture.steps import StepClock
from vqdq.capture.streams import BINS, Detail, Sketch, Summary
from vqdq.errors import UserError
from vqdq.params import nearest

MAX_BYTES = 1 << 29
"""The most the percentile bins of one capture may take."""


def watchable(denoiser: nn.Module) -> tuple[str, ...]:
    """Returns the names of the linear and convolution layers, quantized ones included."""
    kinds = (nn.Linear, nn.Conv2d)
    return tuple(
        name
        for name, module in denoiser.named_modules()
        if isinstance(module, kinds) or hasattr(module, "packed")
    )


class Recorder:
    """Collects while its `record` block runs; `result()` gives the record so far."""

    def __init__(
        self,
        *,
        guided: bool,
        detail: Collection[str],
        detail_steps: Collection[int],
        context: Mapping[str, str | int | float],
    ) -> None:
        self.clock = StepClock(guided=guided)
        self._detail = frozenset(detail)
        self._detail_steps = frozenset(detail_steps)
        self._context = dict(context)
        self._kinds: dict[str, str] = {}  # in the order of the first call
        self._positions: dict[str, tuple[int, ...]] = {}
        self._summaries: dict[tuple[str, int], list[Summary]] = {}
        self._outputs: dict[tuple[str, int], list[_Output]] = {}
        self._details: dict[tuple[str, int], list[Detail]] = {}
        self._sketch = Sketch()

    def see(self, name: str, x: Tensor, y: Tensor) -> None:
        """Adds one call of the layer `name` with input `x` and output `y`."""
        clock = self.clock
        conv = x.ndim == 4
        positions = clock.positions(x, conv=conv)
        if self._positions.setdefault(name, positions) != positions:
            raise UserError(
                f"The input has {positions} positions, earlier {self._positions[name]}.",
                where=name,
                remedy="Record pictures of one size together.",
            )
        self._kinds.setdefault(name, "conv" if conv else "linear")
        key = (name, max(clock.step, 0))
        detailed = name in self._detail or key[1] in self._detail_steps
        count = len(clock.halves)
        summaries = self._summaries.setdefault(key, [Summary() for _ in range(count)])
        outputs = self._outputs.setdefault(key, [_Output() for _ in range(count)])
        for half, part in enumerate(clock.split(_as_tokens(x.detach(), conv=conv))):
            values = summaries[half].update(part)
            if detailed:
                shape = {"positions": values.shape[1], "channels": values.shape[2]}
                found = self._details.setdefault(key, [Detail(**shape) for _ in range(count)])
                found[half].update(values)
        for half, part in enumerate(clock.split(y.detach())):
            outputs[half].add(self._sketch, part)

    def result(self) -> ActivationRecord:
        """Returns everything seen so far, layers in the order they ran."""
        layers = tuple(self._kinds)
        steps = len(self.clock.timesteps) or 1
        halves = self.clock.halves
        scalars = Scalars.empty(halves=len(halves), layers=len(layers), steps=steps)
        for (name, step), streams in self._summaries.items():
            outputs = self._outputs[name, step]
            for half, stream in enumerate(streams):
                place = (half, layers.index(name), step)
                scalars.absmax[place] = stream.absmax
                scalars.rms[place] = stream.rms
                scalars.median[place] = stream.median
                scalars.kurtosis[place] = stream.kurtosis
                scalars.outliers[place] = stream.outliers / max(stream.count, 1)
                scalars.nonfinite[place] = stream.nonfinite
                scalars.output_energy[place] = outputs[half].energy
                scalars.output_sketch[place] = outputs[half].total
        details = {
            (name, step): LayerRecord.of(
                name=name,
                kind=self._kinds[name],
                step=step,
                halves=halves,
                positions=self._positions[name],
                details=found,
                summaries=self._summaries[name, step],
            )
            for (name, step), found in self._details.items()
        }
        return ActivationRecord(
            layers=layers,
            kinds=tuple(self._kinds.values()),
            halves=halves,
            timesteps=tuple(self.clock.timesteps),
            scalars=scalars,
            details=details,
            context=self._context,
        )


@contextlib.contextmanager
def record(
    denoiser: nn.Module,
    layers: Iterable[str] | None = None,
    *,
    detail: Collection[str] = (),
    detail_steps: Collection[int] = (),
    guided: bool = False,
    context: Mapping[str, str | int | float] | None = None,
) -> Generator[Recorder, None, None]:
    """Yields a recorder that watches `denoiser` until the block ends.

    Args:
        denoiser: the model that the sampler calls once a step.
        layers: names of the layers to watch; None for every linear and convolution layer.
        detail: layers whose channels and positions are recorded at every step.
        detail_steps: steps (from 0) at which every watched layer is recorded in detail.
        guided: the batch holds the unconditional, then the conditional half (guidance > 1).
        context: what to remember with the record (prompt, seed, model).

    Raises:
        UserError: a name that the model lacks, or more detail than `MAX_BYTES` of bins can hold.
    """
    known = dict(denoiser.named_modules())
    names = list(dict.fromkeys(watchable(denoiser) if layers is None else layers))
    names += [name for name in detail if name not in names]
    for name in names:
        if name not in known or not name:
            raise UserError(
                "The model has no such layer.",
                where=name,
                remedy=nearest(name, watchable(denoiser), "layer"),
            )
    recorder = Recorder(
        guided=guided, detail=detail, detail_steps=detail_steps, context=context or {}
    )
    _check_memory([known[name] for name in names], len(detail_steps), halves=2 if guided else 1)
    with contextlib.ExitStack() as stack:
        stack.callback(recorder.clock.attach(denoiser).remove)
        for name in names:
            stack.callback(known[name].register_forward_hook(_watch(recorder, name)).remove)
        yield recorder


class _Output:
    """Energy and sketch of what a layer gave, for the distance to another run."""

    def __init__(self) -> None:
        self.samples = 0
        self.energy = 0.0
        self.total: Any = 0.0

    def add(self, sketch: Sketch, y: Tensor) -> None:
        total, energy = sketch.of(y, first=self.samples)
        self.samples += y.shape[0]
        self.energy += energy
        self.total = self.total + total


def _watch(recorder: Recorder, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def hook(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            recorder.see(name, args[0], output)

    return hook


def _as_tokens(x: Tensor, *, conv: bool) -> Tensor:
    """Returns the input as [samples, positions, channels]."""
    if conv:
        return x.flatten(2).transpose(1, 2)
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _check_memory(modules: list[nn.Module], steps: int, *, halves: int) -> None:
    channels = sum(
        int(getattr(module, "in_features", 0) or getattr(module, "in_channels", 0))
        for module in modules
    )
    needed = channels * BINS * 8 * steps * halves
    if needed > MAX_BYTES:
        raise UserError(
            f"Every layer in detail at {steps} steps would take {needed / 1e6:.0f} MB of memory.",
            where="capture",
            remedy="Record the layers of interest in detail, or fewer steps.",
        )
