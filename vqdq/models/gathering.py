"""One pass over recorded calls: the sampled rows of each call go into the moments of their group.

Which rows come in depends on the seed, the group and the call alone, so neither the waves nor the
other layers change a result.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from vqdq.calibration import CalibrationParams
from vqdq.capture.moments import Moments, halves_index, input_rows, row_count
from vqdq.codecs.base import InputStats
from vqdq.errors import UserError
from vqdq.models.input_groups import InputGroup, arguments, input_groups, watching
from vqdq.models.trajectory import Call, Trajectories, replay
from vqdq.progress import Event, Report, silent


def collect(
    module: nn.Module,
    trajectories: Trajectories,
    layers: Iterable[str],
    params: CalibrationParams,
    *,
    report: Report = silent,
    weights: Sequence[float] | None = None,
) -> dict[str, InputStats]:
    """Returns the moments of the inputs of `layers`, in one pass; layers that share inputs share H.

    Layers without one input matrix (grouped convolutions) or that the calls never run are left out.

    Args:
        module: the denoiser that made the calls, in full precision.
        weights: of each step, for `params.weighting` "effect" (`step_weights`); None counts all
            alike.
        report: stage "calibrate", one unit a call; may raise `Cancelled`.

    Raises:
        UserError: an input that is not finite; the layer is named.
    """
    wanted = set(layers)
    groups = [
        group
        for group in input_groups(module, trajectories.calls)
        if not wanted.isdisjoint(group.layers)
    ]
    found = moments_of(module, trajectories, groups, params, report=report, weights=weights)
    stats: dict[str, InputStats] = {}
    for group in groups:
        moments = found.pop(group.name)
        shared = InputStats(
            hessian=moments.hessian(),
            mean=moments.mean(),
            num_samples=moments.rows,
            damping=params.damping,
        )
        stats |= {name: shared for name in group.layers if name in wanted}
    return stats


def moments_of(
    module: nn.Module,
    trajectories: Trajectories,
    groups: Sequence[InputGroup],
    params: CalibrationParams,
    *,
    report: Report = silent,
    weights: Sequence[float] | None = None,
) -> dict[str, Moments]:
    """Returns the moments of each group by its name; see `collect`.

    About `params.tokens_per_channel` rows a column are spread over all calls, over their pictures
    and positions, and equally over both guidance halves. An input that is an argument of the
    denoiser (the text) is taken once for all steps.
    """
    calls = trajectories.calls
    gatherer = _Gatherer(groups, calls, params, weights)
    total = len(calls)
    message = f"inputs of {sum(len(group.layers) for group in groups)} layers"
    with watching(module, gatherer.moments, gatherer.see), torch.no_grad():
        for done, call in enumerate(calls):
            report(Event(stage="calibrate", done=done, total=total, message=message))
            gatherer.begin(call)
            try:
                replay(module, call)
            except _EnoughError:
                continue
    report(Event(stage="calibrate", done=total, total=total, message=message))
    return gatherer.finished()


class _EnoughError(Exception):
    """Every input of this wave has been seen: the rest of the call is not needed."""


class _Gatherer:
    """Adds the sampled rows of each call to the moments of its group."""

    def __init__(
        self,
        groups: Sequence[InputGroup],
        calls: Sequence[Call],
        params: CalibrationParams,
        weights: Sequence[float] | None,
    ) -> None:
        self.moments: dict[str, Moments] = {}
        self._groups = {group.name: group for group in groups}
        self._params = params
        self._weights = weights
        self._once = {group.name: _first_calls(group, calls) for group in groups}
        self._quota = {group.name: self._rows_a_prompt(group, calls) for group in groups}
        self._call = calls[0]
        self._left: dict[str, int] = {}
        for group in groups:
            self.moments[group.name] = Moments(group.in_features, taps=group.taps)

    def begin(self, call: Call) -> None:
        self._call = call
        self._left = {name: group.uses for name, group in self._groups.items()}

    def see(self, name: str, layer: nn.Module, inputs: torch.Tensor) -> None:
        group = self._groups[name]
        use = group.uses - self._left[name]
        self._left[name] -= 1
        once = self._once[name]
        if once is None or id(self._call) in once:
            self._add(group, layer, inputs, use)
        if self._left[name] == 0:
            del self._left[name]
        if not self._left:
            raise _EnoughError

    def finished(self) -> dict[str, Moments]:
        for name, moments in self.moments.items():
            if not bool(torch.isfinite(moments.mean()).all()):
                raise UserError(
                    "its input is NaN or infinite on the calibration prompts.",
                    where=name,
                    remedy="Run the model in 32 bits, or use another checkpoint.",
                )
        return self.moments

    def _add(self, group: InputGroup, layer: nn.Module, inputs: torch.Tensor, use: int) -> None:
        call = self._call
        total = row_count(layer, inputs)
        whole = call.guided and inputs.shape[0] % call.output.shape[0] == 0
        halves = 2 if whole else 1
        key = f"{self._params.seed}:{group.name}:{use}:{call.step}:{call.prompts[0]}"
        count = math.ceil(self._quota[group.name] * len(call.prompts))
        index = halves_index(total, count, halves, _generator(key)).to(inputs.device)
        weight = 1.0
        if self._weights is not None and self._once[group.name] is None:
            weight = self._weights[call.step]
        moments = self.moments[group.name]
        moments.add(input_rows(layer, inputs, index), weight)
        moments.bound(inputs, conv=group.kind == "conv2d")

    def _rows_a_prompt(self, group: InputGroup, calls: Sequence[Call]) -> float:
        once = self._once[group.name]
        prompts = sum(len(call.prompts) for call in calls if once is None or id(call) in once)
        return self._params.tokens_per_channel * group.in_features / (prompts * group.uses)


def _first_calls(group: InputGroup, calls: Sequence[Call]) -> set[int] | None:
    """Returns the ids of the calls that bring a new input, or None when every call does."""
    if group.argument is None:
        return None
    seen: dict[int, int] = {}
    for call in calls:
        seen.setdefault(id(arguments(call).get(group.argument)), id(call))
    return set(seen.values())


def _generator(key: str) -> torch.Generator:
    digest = hashlib.sha256(key.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
