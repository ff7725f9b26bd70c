"""What rounding each layer's input costs the noise prediction, all layers from the same passes.

A layer's output is off by δ when its input is rounded. To first order the prediction is then off by
J δ, and with random signs v, E_v (gᵀδ)² = ‖J δ‖² where g is the gradient of vᵀε by that output
(Hutchinson 1990). So one backward pass tells the cost of the real δ of every layer, where switching
layers on one by one takes a forward pass each. Pictures of a batch do not touch each other: each is
a probe of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vqdq.errors import UserError
from vqdq.layers.quantized import QuantizedLayer
from vqdq.models.trajectory import Call, guided, replay
from vqdq.progress import Event, Report, silent


@dataclass(frozen=True, kw_only=True, slots=True)
class InputCost:
    """What rounding one layer's input costs.

    Attributes:
        raw: squared error of the prediction / its energy, both halves; `guided`: of what the
            sampler makes of it.
        output_db: 10 log10(‖y‖² / ‖δ‖²) of the layer's own output, dB; inf when nothing is lost.
        macs: products of one picture's pass through the layer.
    """

    raw: float
    guided: float
    output_db: float
    macs: int

    def blend(self, guided_weight: float) -> float:
        """Returns (1 − w) raw + w guided."""
        return (1 - guided_weight) * self.raw + guided_weight * self.guided


def input_costs(
    module: nn.Module,
    calls: Sequence[Call],
    guidance: float,
    *,
    probes: int = 2,
    seed: int = 0,
    weights: torch.Tensor | None = None,
    report: Report = silent,
) -> dict[str, InputCost]:
    """Returns the cost of each quantized input of a model, by layer; the model comes back as it is.

    Layers that the calls never run cost nothing.

    Args:
        module: a denoiser with calibrated inputs.
        calls: recorded calls of the full-precision model, over many noise levels.
        probes: sign vectors a call, for each of the two kinds of prediction.
        weights: of the places of a prediction, as in `sensitivity.measure`.
        report: stage "protect", one unit a call; may raise `Cancelled`.

    Raises:
        UserError: predictions that are zero or not finite.
    """
    layers = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, QuantizedLayer) and layer.input is not None
    }
    found = {name: _Sums() for name in layers}
    generator = torch.Generator().manual_seed(seed)
    energy = {False: 0.0, True: 0.0}
    with _probing(module, layers, found) as probe:
        for done, call in enumerate(calls):
            report(Event(stage="protect", done=done, total=len(calls)))
            probe.batch, probe.halves = len(call.output), 2 if call.guided else 1
            with torch.enable_grad():
                output = replay(module, call)
                for kind in (False, True):
                    seen = guided(output, call, guidance) if kind else output
                    seen = seen if weights is None else seen * weights.to(seen).sqrt()
                    energy[kind] += float(seen.detach().double().square().sum())
                    probe.guided, probe.share = kind, 1 / probes
                    for number in range(probes):
                        last = kind and number == probes - 1
                        drawn = torch.randint(0, 2, seen.shape, generator=generator)
                        signs = (2 * drawn - 1).to(seen.device, seen.dtype)
                        seen.backward(signs, retain_graph=not last)  # pyright: ignore[reportUnknownMemberType]
            probe.clear()
    report(Event(stage="protect", done=len(calls), total=len(calls)))
    if not all(math.isfinite(value) and value > 0 for value in energy.values()):
        raise UserError(
            "the denoiser's predictions are zero or not finite.",
            where="protection",
            remedy="Check that the model draws pictures in 32 bits.",
        )
    return {name: sums.cost(energy) for name, sums in found.items()}


@dataclass(slots=True)
class _Sums:
    """Of one layer: Σ(gᵀδ)² by kind, ‖y‖², ‖δ‖² and products a picture."""

    spent: dict[bool, float] = field(default_factory=lambda: {False: 0.0, True: 0.0})
    signal: float = 0.0
    error: float = 0.0
    macs: int = 0

    def cost(self, energy: dict[bool, float]) -> InputCost:
        clean = self.error == 0
        return InputCost(
            raw=self.spent[False] / energy[False],
            guided=self.spent[True] / energy[True],
            output_db=math.inf if clean else 10 * math.log10(self.signal / self.error),
            macs=self.macs,
        )


class _Probe:
    """The hooks' common state: which call is made, and which prediction is probed."""

    def __init__(self) -> None:
        self.batch, self.halves = 1, 1
        self.guided, self.share = False, 1.0
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def watch(self, output: torch.Tensor, error: torch.Tensor, sums: _Sums) -> torch.Tensor:
        """Returns `output` for the graph; every backward pass through it adds to `sums`."""
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        kept = output.clone()  # what comes after may write into it
        self._handles.append(kept.register_hook(self._adder(error, sums)))
        return kept

    def _adder(self, error: torch.Tensor, sums: _Sums) -> Callable[[torch.Tensor], None]:
        def add(gradient: torch.Tensor) -> None:
            # Rows of the batch are probes of their own; both halves of a picture are one.
            rows = self.batch if len(gradient) % self.batch == 0 else 1
            products = (gradient.float() * error).reshape(rows, -1).sum(1, dtype=torch.float64)
            if self.guided and rows == self.batch:
                products = products.reshape(self.halves, -1).sum(0)
            sums.spent[self.guided] += self.share * float(products.square().sum())

        return add

    def clear(self) -> None:
        """Lets go of the errors of a call."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


@contextmanager
def _probing(
    module: nn.Module, layers: dict[str, QuantizedLayer], found: dict[str, _Sums]
) -> Generator[_Probe, None, None]:
    """Lends a probe; meanwhile inputs pass as they are and what rounding would do is noted."""
    probe = _Probe()
    before = [(p, p.requires_grad) for p in module.parameters()]
    enabled = {name: given.enabled for name, layer in layers.items() if (given := layer.input)}

    def hook_of(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], Any]:
        layer, sums = layers[name], found[name]
        given = layer.input
        assert given is not None

        def hook(
            _module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
        ) -> torch.Tensor:
            with torch.no_grad():
                given.enabled = True
                try:
                    rounded = layer.forward(inputs[0])
                finally:
                    given.enabled = False
                error = (rounded - output).float()
                sums.signal += float(output.double().square().sum())
                sums.error += float(error.double().square().sum())
                shape = layer.packed.shape
                sums.macs = output[0].numel() * shape.in_features
            return probe.watch(output, error, sums)

        return hook

    handles = [layer.register_forward_hook(hook_of(name)) for name, layer in layers.items()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(False)
        for layer in layers.values():
            if layer.input is not None:
                layer.input.enabled = False
        yield probe
    finally:
        probe.clear()
        for handle in handles:
            handle.remove()
        for parameter, required in before:
            parameter.requires_grad_(required)
        for name, layer in layers.items():
            if layer.input is not None:
                layer.input.enabled = enabled[name]
