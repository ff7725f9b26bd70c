"""How much an error in each layer's weight changes what the denoiser predicts.

Let each weight of row r carry an independent error of variance d · mean(W_r²), which is what a
codec that scales by row in a rotated basis leaves: d is its relative error. To first order the
prediction's squared error is then Σ_r d · mean(W_r²) · Σ_outputs ‖∂ε/∂W_r‖², and with random signs
v, E_v ‖∂(vᵀε)/∂W_r‖² is that sum (Hutchinson 1990; for quantization, the Gauss–Newton matrix of
YAQA, arXiv 2505.22988, section 4). One backward pass probes every layer at once, where injecting
noise (HIGGS, arXiv 2411.17525, section 5) takes one forward pass a layer; `injected` does that too,
to check.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

from vqdq.errors import UserError
from vqdq.metrics.trajectory import Energy, energy
from vqdq.models.trajectory import Call, Trajectories, guided, replay
from vqdq.progress import Event, Report, silent

_VERSION = 1
_DAMAGE = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError)


@dataclass(frozen=True, kw_only=True, slots=True)
class Effect:
    """What a relative weight error of 1 costs: squared error of the prediction / its energy.

    Attributes:
        raw: of the denoiser's output, both halves.
        guided: of what the sampler makes of it; equal to `raw` without guidance.
        rows: share of each output row in it, sum 1; empty: all rows alike. Codecs lose more of some
            rows than of others, and with heavy-tailed weights those can be the ones that matter.
    """

    raw: float
    guided: float
    rows: tuple[float, ...] = ()

    def blend(self, guided_weight: float) -> float:
        """Returns (1 − w) raw + w guided."""
        return (1 - guided_weight) * self.raw + guided_weight * self.guided


@dataclass(frozen=True, kw_only=True, slots=True)
class Sensitivity:
    """The effect of every layer, and what it was measured on.

    Attributes:
        effects: by layer name.
        calls, probes, seed: of the measurement.
    """

    effects: Mapping[str, Effect]
    calls: int
    probes: int
    seed: int

    def blended(self, guided_weight: float) -> dict[str, float]:
        """Returns (1 − w) raw + w guided of every layer."""
        return {name: effect.blend(guided_weight) for name, effect in self.effects.items()}

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values that `from_json` reads."""
        return {
            "version": _VERSION,
            "calls": self.calls,
            "probes": self.probes,
            "seed": self.seed,
            "effects": {name: [e.raw, e.guided, list(e.rows)] for name, e in self.effects.items()},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, where: str = "sensitivity") -> Self:
        """Returns a kept measurement.

        Raises:
            UserError: not what `to_json` wrote.
        """
        try:
            if values["version"] != _VERSION:
                raise ValueError(f"version {values['version']!r}")
            effects = {
                str(name): Effect(
                    raw=float(entry[0]),
                    guided=float(entry[1]),
                    rows=tuple(float(share) for share in entry[2]),
                )
                for name, entry in values["effects"].items()
            }
            counts = [int(values[key]) for key in ("calls", "probes", "seed")]
        except _DAMAGE as error:
            raise UserError(
                f"is not a measured sensitivity ({error}).", where=where, remedy="Measure it again."
            ) from error
        return cls(effects=effects, calls=counts[0], probes=counts[1], seed=counts[2])


def spread_calls(trajectories: Trajectories, count: int) -> tuple[Call, ...]:
    """Returns `count` calls, evenly over the steps, and over the prompts in turn.

    With more steps than calls, the middles of `count` equal parts of the schedule are taken.
    """
    by_step: dict[int, list[Call]] = {}
    for call in trajectories.calls:
        by_step.setdefault(call.step, []).append(call)
    steps = sorted(by_step)
    chosen: list[Call] = []
    for number in range(min(count, len(trajectories.calls))):
        place = (2 * number + 1) * len(steps) // (2 * count) if count < len(steps) else number
        of_step = by_step[steps[place % len(steps)]]
        turn = number if count < len(steps) else number // len(steps) + number
        chosen.append(of_step[turn % len(of_step)])
    return tuple(chosen)


def measure(
    module: nn.Module,
    trajectories: Trajectories,
    layers: Sequence[str],
    *,
    calls: int = 20,
    probes: int = 1,
    seed: int = 0,
    weights: torch.Tensor | None = None,
    report: Report = silent,
) -> Sensitivity:
    """Returns the effect of each layer, all layers from the same backward passes.

    Args:
        module: the full-precision denoiser; comes back unchanged, gradients included.
        trajectories: recorded calls; batches of a few prompts.
        layers: names of layers with a `weight` parameter.
        calls: recorded calls that are probed, spread over steps and prompts.
        probes: random sign vectors a call, for each of the two kinds of prediction. A probe keeps
            the activations of one forward pass, and the gradient of one layer at a time.
        weights: how much each place of a prediction counts, see `region.region_weights`; None:
            all alike. The error Σ w e² is that of √w times the prediction.
        report: stage "sensitivity", one unit a call; may raise `Cancelled`.

    Raises:
        UserError: a prediction that is not finite.
    """
    chosen = spread_calls(trajectories, calls)
    generator = torch.Generator().manual_seed(seed)
    kinds = (False, True) if any(call.guided for call in chosen) else (False,)
    signal = dict.fromkeys(kinds, 0.0)
    with _watched(module, layers) as sums:
        found: dict[bool, dict[str, torch.Tensor]] = {kind: {} for kind in kinds}  # of each row
        for done, call in enumerate(chosen):
            report(Event(stage="sensitivity", done=done, total=len(chosen)))
            with torch.enable_grad():
                output = replay(module, call).float()
                for kind in kinds:
                    seen = guided(output, call, trajectories.guidance) if kind else output
                    seen = seen if weights is None else seen * weights.to(seen).sqrt()
                    signal[kind] += float(seen.detach().double().square().sum())
                    for number in range(probes):
                        last = kind == kinds[-1] and number == probes - 1
                        signs = _signs(seen, generator)
                        seen.backward(signs, retain_graph=not last)  # pyright: ignore[reportUnknownMemberType]
                        for name in layers:
                            if name in sums:
                                known = found[kind].get(name, 0.0)
                                found[kind][name] = known + sums.pop(name) / probes
    report(Event(stage="sensitivity", done=len(chosen), total=len(chosen)))
    if not all(math.isfinite(value) and value > 0 for value in signal.values()):
        raise UserError(
            "the denoiser's predictions are zero or not finite.",
            where="sensitivity",
            remedy="Check that the model draws pictures in 32 bits.",
        )
    effects = {
        name: _effect(
            found[False].get(name), found[kinds[-1]].get(name), signal[False], signal[kinds[-1]]
        )
        for name in layers
    }
    return Sensitivity(effects=effects, calls=len(chosen), probes=probes, seed=seed)


def injected(
    module: nn.Module,
    trajectories: Trajectories,
    layer: str,
    *,
    relative_error: float = 0.02,
    calls: int = 4,
    seed: int = 0,
) -> Effect:
    """Returns the effect of one layer by injecting noise of that relative power into its weight.

    +e and −e are both tried, which cancels the odd part of the response. Nothing is linearised, so
    this also tells where the first order ends.
    """
    chosen = spread_calls(trajectories, calls)
    weight = module.get_submodule(layer).get_parameter("weight")
    original = weight.detach().clone()
    rows = original.float().reshape(len(original), -1)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(rows.shape, generator=generator).to(rows.device)
    scale = (relative_error * rows.square().mean(dim=1, keepdim=True)).sqrt()
    noise = (drawn * scale).reshape(original.shape).to(original.dtype)
    parts: list[Energy] = []
    try:
        with torch.no_grad():
            for sign in (1, -1):
                weight.copy_(original + sign * noise)
                parts += [
                    energy(replay(module, call), call, trajectories.guidance) for call in chosen
                ]
    finally:
        with torch.no_grad():
            weight.copy_(original)
    return Effect(
        raw=sum(p.raw_error for p in parts) / sum(p.raw_signal for p in parts) / relative_error,
        guided=sum(p.guided_error for p in parts)
        / sum(p.guided_signal for p in parts)
        / relative_error,
    )


def _effect(
    raw: torch.Tensor | None, told: torch.Tensor | None, raw_signal: float, told_signal: float
) -> Effect:
    """Returns the effect of a layer whose rows have these sums; without any it never ran."""
    if raw is None or told is None:
        return Effect(raw=0.0, guided=0.0)
    both = raw / raw_signal + told / told_signal
    shares = (both / both.sum()).tolist() if float(both.sum()) > 0 else []
    return Effect(
        raw=float(raw.sum()) / raw_signal,
        guided=float(told.sum()) / told_signal,
        rows=tuple(float(f"{share:.4g}") for share in shares),  # kept short: it goes into files
    )


@contextmanager
def _watched(
    module: nn.Module, layers: Sequence[str]
) -> Generator[dict[str, torch.Tensor], None, None]:
    """Lends a dictionary into which every backward pass writes mean(W_r²) ‖∂W_r‖² by layer, [out].

    A gradient is reduced to those numbers and freed as soon as it is complete. Which parameters
    record gradients, and what they have recorded, is as before afterwards.
    """
    sums: dict[str, torch.Tensor] = {}
    weights = {name: module.get_submodule(name).get_parameter("weight") for name in layers}
    names: dict[int, list[str]] = {}
    for name, weight in weights.items():
        names.setdefault(id(weight), []).append(name)
    before = [(p, p.requires_grad, p.grad) for p in module.parameters()]
    handles: list[Any] = []

    def reduce(weight: torch.Tensor) -> None:
        if weight.grad is not None:
            value = (_row_power(weight) * _row_sum(weight.grad)).double().cpu()  # [out]
            for name in names[id(weight)]:
                sums[name] = value
            weight.grad = None

    try:
        for parameter, _, _ in before:
            parameter.requires_grad_(id(parameter) in names)
            parameter.grad = None
        for weight in {id(w): w for w in weights.values()}.values():
            handles.append(weight.register_post_accumulate_grad_hook(reduce))
        yield sums
    finally:
        for handle in handles:
            handle.remove()
        for parameter, required, gradient in before:
            parameter.requires_grad_(required)
            parameter.grad = gradient


def _row_power(weight: torch.Tensor) -> torch.Tensor:
    """Returns mean(W_r²) of each row, float32 [out]."""
    return weight.detach().float().reshape(len(weight), -1).square().mean(dim=1)


def _row_sum(gradient: torch.Tensor) -> torch.Tensor:
    """Returns the sum of squares of each row, float32 [out]."""
    return gradient.detach().float().reshape(len(gradient), -1).square().sum(dim=1)


def _signs(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    drawn = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.int8)
    return (2 * drawn - 1).to(like.device, like.dtype)
