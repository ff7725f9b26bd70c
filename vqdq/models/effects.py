"""How much an error of the noise prediction matters at each step: its effect on the final latent.

Measured, so that it holds for any sampler, guidance and parametrisation: one prediction is
disturbed and the picture is drawn on from there. The disturbance is what a little noise in every
weight makes of the prediction, because what rounding does looks like that. (White noise in the
prediction itself would be a bad probe: the model removes it again in all but the last steps.)
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from vqdq.layers.matrix import kind_of
from vqdq.models.denoisers import denoiser
from vqdq.models.trajectory import Call, Trajectories, draw, replay
from vqdq.progress import Event, Report, silent

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_AMOUNT = 0.02  # noise in each weight matrix, of its root mean square: small, far above rounding


def step_weights(
    pipeline: DiffusionPipeline,
    trajectories: Trajectories,
    *,
    prompts: int = 4,
    seed: int = 0,
    report: Report = silent,
) -> tuple[float, ...]:
    """Returns w_t = E‖difference of the final latents‖² / relative squared error at t, of mean 1.

    Steps before the disturbed one come from the recorded calls and cost nothing.

    Args:
        trajectories: of this pipeline.
        prompts: how many of the first ones are drawn again from every step.
        report: stage "weigh", one unit a step; may raise `Cancelled`.
    """
    module = denoiser(pipeline)[1]
    calls = [call for call in trajectories.calls if call.prompts == trajectories.calls[0].prompts]
    count = min(prompts, len(calls[0].prompts))
    recorded = [_first(call.output, call, count) for call in calls]
    effects: list[float] = []
    for step in range(len(calls)):
        report(Event(stage="weigh", done=step, total=len(calls)))
        with _noisy_weights(module, seed + step), torch.no_grad():
            noisy = _first(replay(module, calls[step]).cpu(), calls[step], count)
        error = noisy - recorded[step]
        with _given(module, [*recorded[:step], noisy]):
            ends = draw(
                pipeline,
                trajectories.prompts[:count],
                steps=trajectories.steps,
                guidance=trajectories.guidance,
                seed=trajectories.seed,
            )
        power = float(error.square().sum()) / float(recorded[step].square().sum())
        effects.append(float((ends - trajectories.latents[:count]).square().mean()) / power)
    report(Event(stage="weigh", done=len(calls), total=len(calls)))
    mean = sum(effects) / len(effects)
    return tuple(effect / mean if mean > 0 else 1.0 for effect in effects)


def _first(output: torch.Tensor, call: Call, count: int) -> torch.Tensor:
    """Returns the prediction for the first `count` prompts of a call, of both halves."""
    halves = output.chunk(2) if call.guided else (output,)
    return torch.cat([half[:count] for half in halves])


class _Output(tuple[torch.Tensor]):
    """A prediction for pipelines that take the first item, and for those that take `.sample`."""

    @property
    def sample(self) -> torch.Tensor:
        return self[0]


@contextmanager
def _given(module: nn.Module, outputs: Sequence[torch.Tensor]) -> Generator[None, None, None]:
    """Lets the first calls of `module` return `outputs`; the later ones are computed."""
    held = cast(Any, module)
    instance = vars(module).get("forward")  # another program's own, if any
    original = held.forward
    place = next(module.parameters()).device
    left = list(outputs)

    def forward(*args: Any, **kwargs: Any) -> Any:
        return _Output((left.pop(0).to(place),)) if left else original(*args, **kwargs)

    held.forward = forward
    try:
        yield
    finally:
        if instance is None:
            del held.forward
        else:
            held.forward = instance


@contextmanager
def _noisy_weights(module: nn.Module, seed: int) -> Generator[None, None, None]:
    """Adds noise to the weight of each layer while it runs, and puts the very same bits back."""
    clean: dict[nn.Module, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(seed)

    def disturb(layer: nn.Module, _args: Any) -> None:
        weight = layer.get_parameter("weight").data
        clean[layer] = weight.clone()
        noise = torch.randn(weight.shape, generator=generator).to(weight)
        weight.add_(noise * (_AMOUNT * weight.float().square().mean().sqrt()).to(weight))

    def restore(layer: nn.Module, _args: Any, _output: Any) -> None:
        layer.get_parameter("weight").data.copy_(clean.pop(layer))

    handles = [
        handle
        for layer in module.modules()
        if kind_of(layer) is not None
        for handle in (
            layer.register_forward_pre_hook(disturb),
            layer.register_forward_hook(restore),
        )
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer, weight in clean.items():  # one that an exception left disturbed
            layer.get_parameter("weight").data.copy_(weight)
