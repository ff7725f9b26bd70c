"""Statistics of what goes into each layer while a picture is drawn: by channel, position and step.

`record` watches a denoiser through forward hooks, which are gone when its block ends, however it
ends. Every watched layer gets a row of scalars, a histogram and the extremes of its channels and
positions for each step; the layers in `detail`, and all layers at the steps in `detail_steps`, also
get the percentiles of their channels. Activations are not kept, but for one layer and step on
request.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import vqdq.capture.codes as codes
import vqdq.capture.streams as streams
from vqdq.capture.codes import Codes
from vqdq.capture.kept import KEPT_BYTES, Keeper, KeptTensor
from vqdq.capture.records import ActivationRecord, LayerRecord, LayerSeries
from vqdq.capture.scalars import Scalars
from vqdq.capture.sketch import Sketch, SketchStream
from vqdq.capture.steps import StepClock
from vqdq.capture.streams import BINS, Detail, Measured, Overview, Summary
from vqdq.errors import UserError
from vqdq.layers.inputs import LayerInput
from vqdq.layers.quantized import QuantizedLayer
from vqdq.params import nearest

MAX_BYTES = 1 << 29
"""The most the percentile bins of one capture may take."""
SERIES_BYTES = 1 << 28
"""What extremes by channel and position may take; else only every n-th step has them."""
_MANY_STEPS = 50  # what the budget is divided for, since nobody says how many will come


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
        keep: tuple[str, int] | None,
        keep_bytes: int,
        series_bytes: int,
        context: Mapping[str, str | int | float],
    ) -> None:
        self.clock = StepClock(guided=guided)
        self._detail = frozenset(detail)
        self._detail_steps = frozenset(detail_steps)
        self._keep = keep
        self._keeper = Keeper(budget=keep_bytes)
        self._series_bytes = series_bytes
        self._context = dict(context)
        self._step = 0
        self._last: tuple[Tensor, int, Measured] | None = None
        self._kinds: dict[str, str] = {}  # in the order of the first call
        self._shapes: dict[str, torch.Size] = {}  # of the last call
        self._positions: dict[str, tuple[int, ...]] = {}
        self._channels: dict[str, int] = {}
        self._summaries: dict[tuple[str, int], Summary] = {}
        self._outputs: dict[tuple[str, int], SketchStream] = {}
        self._details: dict[tuple[str, int], Detail] = {}
        self._turned: dict[tuple[str, int], tuple[Summary, Detail]] = {}
        self._codes: dict[tuple[str, int], Codes] = {}
        self._sketch = Sketch()

    def see(self, name: str, layer: nn.Module, x: Tensor, y: Tensor) -> None:
        """Adds one call of the layer `name` with input `x` and output `y`."""
        if self._shapes.get(name) != x.shape:
            self._learn(name, x)
        step = max(self.clock.step, 0)
        key = (name, step)
        if step != self._step:  # a step ends, and with it the inputs that may come again
            self._last = None
            self._release_step(self._step)
            self._step = step
        found = self._measured(x)
        if key not in self._summaries:
            self._summaries[key] = Summary(found)
            self._outputs[key] = SketchStream(self._sketch, len(self.clock.halves))
        else:
            self._summaries[key].add(found)
        self._outputs[key].add(self.clock.whole(y.detach().flatten(1)))
        detailed = name in self._detail or step in self._detail_steps
        if detailed:
            self._add_detail(key, found)
        if key == self._keep:
            self._keeper.add(found.rows)
        given = codes.quantized_input(layer)
        if given is not None:
            self._see_codes(key, given, cast(QuantizedLayer, layer), x.detach(), detailed=detailed)

    def _learn(self, name: str, x: Tensor) -> None:
        """Remembers what the inputs of a layer look like."""
        conv = x.ndim == 4
        positions = self.clock.positions(x, conv=conv)
        if self._positions.setdefault(name, positions) != positions:
            raise UserError(
                f"The input has {positions} positions, earlier {self._positions[name]}.",
                where=name,
                remedy="Record pictures of one size together.",
            )
        self._kinds[name] = "conv" if conv else "linear"
        self._channels[name] = int(x.shape[1 if conv else -1])
        self._shapes[name] = x.shape

    def _measured(self, x: Tensor) -> Measured:
        """Returns the numbers of an input; q, k and v are given the very same one."""
        version = -1 if x.is_inference() else x._version
        if self._last is None or self._last[0] is not x or self._last[1] != version:
            values, conv = x.detach(), x.ndim == 4
            if conv and not values.is_contiguous():
                values, conv = values.permute(0, 2, 3, 1), False  # what is channels last in memory
            flat = values.flatten(2) if conv else values.reshape(len(x), -1, values.shape[-1])
            whole, halves = self.clock.whole(flat), len(self.clock.halves)
            self._last = (x, version, streams.measure(whole, halves, conv=conv))
        return self._last[2]

    def _add_detail(self, key: tuple[str, int], found: Measured) -> None:
        if key in self._details:
            self._details[key].add(found)
        else:
            self._details[key] = Detail(found)

    def _see_codes(
        self,
        key: tuple[str, int],
        given: LayerInput,
        layer: QuantizedLayer,
        x: Tensor,
        *,
        detailed: bool,
    ) -> None:
        halves = len(self.clock.halves)
        rows, grid = codes.rounded_rows(given, layer, x)
        if key not in self._codes:
            self._codes[key] = Codes(halves, given.quantizer.name, grid.bits, grid.code)
        self._codes[key].update(rows, grid)
        if not detailed or not codes.turned(given):
            return
        found = streams.measure(self.clock.whole(rows), halves, conv=False)
        if key in self._turned:
            for stream in self._turned[key]:
                stream.add(found)
        else:
            self._turned[key] = (Summary(found), Detail(found))

    def _release_step(self, step: int) -> None:
        """Gives up what a step knows by channel and position, unless the budget holds it."""
        halves = len(self.clock.halves)
        entries = sum(
            self._channels[name] + math.prod(positions)
            for name, positions in self._positions.items()
        )
        if step % max(1, -(-_MANY_STEPS * 16 * halves * entries // self._series_bytes)):
            for name in self._positions:
                if (name, step) in self._summaries:
                    self._summaries[name, step].release()

    def result(self) -> ActivationRecord:
        """Returns everything seen so far, layers in the order they ran."""
        layers = tuple(self._kinds)
        steps = len(self.clock.timesteps) or 1
        for step in range(steps):
            self._release_step(step)
        halves = self.clock.halves
        scalars = Scalars.empty(halves=len(halves), layers=len(layers), steps=steps)
        row = {name: index for index, name in enumerate(layers)}
        self._fill(scalars, row)
        found = {key: stream.result() for key, stream in self._codes.items()}
        for (name, step), used in found.items():
            scalars.clipped[:, row[name], step] = used.clipped
            scalars.used[:, row[name], step] = used.used
        return ActivationRecord(
            layers=layers,
            kinds=tuple(self._kinds.values()),
            halves=halves,
            timesteps=tuple(self.clock.timesteps),
            scalars=scalars,
            series={name: self._series(name, steps) for name in layers},
            details={
                key: self._layer(key, self._summaries[key], detail)
                for key, detail in self._details.items()
            },
            turned={
                key: self._layer(key, summary, detail)
                for key, (summary, detail) in self._turned.items()
            },
            codes={key: used for key, used in found.items() if key in self._details},
            kept=self._kept(),
            context=self._context,
        )

    def _fill(self, scalars: Scalars, row: Mapping[str, int]) -> None:
        """Fills in what is known of the whole inputs and outputs, all of them together."""
        if not self._summaries:
            return
        found = Overview.of(list(self._summaries.values()))
        steps = np.array([step for _, step in self._summaries])
        place = (slice(None), np.array([row[name] for name, _ in self._summaries]), steps)
        for field in dataclasses.fields(found):
            if field.name != "histogram":
                getattr(scalars, field.name)[place] = getattr(found, field.name).T
        levels = streams.magnitude_quantiles(
            found.histogram.reshape(-1, BINS), found.absmax.reshape(-1), (0.5, 0.99, 0.9999)
        ).reshape(3, len(steps), -1)  # [levels, layers and steps, halves]
        scalars.median[place], scalars.p99[place], scalars.p9999[place] = levels.mT
        outputs = list(self._outputs.values())
        scalars.output_energy[place] = np.stack([each.energy for each in outputs], axis=1)
        scalars.output_sketch[place] = np.stack([each.total for each in outputs], axis=1)

    def _layer(self, key: tuple[str, int], summary: Summary, detail: Detail) -> LayerRecord:
        return LayerRecord.of(
            name=key[0],
            kind=self._kinds[key[0]],
            step=key[1],
            halves=self.clock.halves,
            positions=self._positions[key[0]],
            detail=detail,
            summary=summary,
        )

    def _kept(self) -> KeptTensor | None:
        if self._keep is None:
            return None
        name, step = self._keep
        positions = self._positions.get(name, ())
        return self._keeper.result(
            name=name, step=step, halves=self.clock.halves, positions=positions
        )

    def _series(self, name: str, steps: int) -> LayerSeries:
        halves, channels = len(self.clock.halves), self._channels[name]
        positions = self._positions[name]

        def empty(size: int) -> npt.NDArray[np.float32]:
            return np.full((halves, steps, size), np.nan, np.float32)

        series = LayerSeries(
            name=name,
            positions=positions,
            channel_low=empty(channels),
            channel_high=empty(channels),
            position_low=empty(math.prod(positions)),
            position_high=empty(math.prod(positions)),
            histogram=np.zeros((halves, steps, BINS), np.uint32),
        )
        for step in range(steps):
            stream = self._summaries.get((name, step))
            if stream is None:
                continue
            series.histogram[:, step] = stream.histogram
            if stream.limits is not None:
                (
                    series.channel_low[:, step],
                    series.channel_high[:, step],
                    series.position_low[:, step],
                    series.position_high[:, step],
                ) = streams.cut(stream.limits, channels)
        return series


@contextlib.contextmanager
def record(
    denoiser: nn.Module,
    layers: Iterable[str] | None = None,
    *,
    detail: Collection[str] = (),
    detail_steps: Collection[int] = (),
    guided: bool = False,
    keep: tuple[str, int] | None = None,
    keep_bytes: int = KEPT_BYTES,
    series_bytes: int = SERIES_BYTES,
    context: Mapping[str, str | int | float] | None = None,
) -> Generator[Recorder, None, None]:
    """Yields a recorder that watches `denoiser` until the block ends.

    Args:
        denoiser: the model that the sampler calls once a step.
        layers: names of the layers to watch; None for every linear and convolution layer.
        detail: layers whose channels and positions are recorded at every step.
        detail_steps: steps (from 0) at which every watched layer is recorded in detail.
        guided: the batch holds the unconditional, then the conditional half (guidance > 1).
        keep: layer and step (from 0) whose values are kept as they are, within `keep_bytes`.
        series_bytes: what extremes by channel and position may take over all steps.
        context: what to remember with the record (prompt, seed, model).

    Raises:
        UserError: a name that the model lacks, or more detail than `MAX_BYTES` of bins can hold.
    """
    known = dict(denoiser.named_modules())
    names = list(dict.fromkeys(watchable(denoiser) if layers is None else layers))
    asked = [*detail, *([keep[0]] if keep else [])]
    names += [name for name in asked if name not in names]
    for name in names:
        if name not in known or not name:
            raise UserError(
                "The model has no such layer.",
                where=name,
                remedy=nearest(name, watchable(denoiser), "layer"),
            )
    recorder = Recorder(
        guided=guided,
        detail=detail,
        detail_steps=detail_steps,
        keep=keep,
        keep_bytes=keep_bytes,
        series_bytes=series_bytes,
        context=context or {},
    )
    _check_memory([known[name] for name in names], len(detail_steps), halves=2 if guided else 1)
    with contextlib.ExitStack() as stack:
        stack.callback(recorder.clock.attach(denoiser).remove)
        for name in names:
            stack.callback(known[name].register_forward_hook(_watch(recorder, name)).remove)
        yield recorder


def _watch(recorder: Recorder, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            recorder.see(name, module, args[0], output)

    return hook


def _check_memory(modules: list[nn.Module], steps: int, *, halves: int) -> None:
    channels = sum(
        int(getattr(module, "in_features", 0) or getattr(module, "in_channels", 0))
        for module in modules
    )
    needed = channels * BINS * 4 * steps * halves
    if needed > MAX_BYTES:
        raise UserError(
            f"Every layer in detail at {steps} steps would take {needed / 1e6:.0f} MB of memory.",
            where="capture",
            remedy="Record the layers of interest in detail, or fewer steps.",
        )
