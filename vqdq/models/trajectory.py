"""The teacher's own way from noise to picture: every call of a denoiser, kept to be made again.

Calibration, sensitivity, fine-tuning and the error along the way all ask the same question of some
layer or model: what do you make of the inputs that the full-precision model really sees? So those
inputs are recorded once, whatever the pipeline is, and replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from vqdq.models.denoisers import denoiser
from vqdq.models.generate import require_text
from vqdq.models.quiet import quiet
from vqdq.progress import Event, Report, silent

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One call of the denoiser.

    Attributes:
        step: from 0; `timestep`: what the scheduler calls it.
        prompts: which prompts of the trajectories are in the batch, in order.
        args, kwargs: of the call, tensors on the CPU; equal tensors are stored once.
        output: the prediction, [batch, ...]; with guidance the unconditional half comes first.
    """

    step: int
    timestep: float
    prompts: tuple[int, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: torch.Tensor

    @property
    def guided(self) -> bool:
        """The batch holds an unconditional and a conditional half."""
        return self.output.shape[0] == 2 * len(self.prompts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trajectories:
    """Every call that drew `prompts`, and the latents [prompts, ...] they ended in.

    Prompt i began with the noise of `seed` + i.
    """

    prompts: tuple[str, ...]
    steps: int
    guidance: float
    calls: tuple[Call, ...]
    latents: torch.Tensor
    seed: int = 0


def record(
    pipeline: DiffusionPipeline,
    prompts: Sequence[str],
    *,
    steps: int,
    guidance: float,
    seed: int = 0,
    batch_size: int = 8,
    report: Report = silent,
) -> Trajectories:
    """Returns the calls of the pipeline's denoiser while it draws `prompts`, no pictures.

    Prompt i starts from the noise of seed + i, so it does not depend on the batch.

    Args:
        report: stage "record", one unit a prompt; may raise `Cancelled`.
    """
    module = denoiser(pipeline)[1]
    keeper = _Keeper()
    ends: list[torch.Tensor] = []
    handle = module.register_forward_hook(keeper.keep, with_kwargs=True)
    try:
        for start in range(0, len(prompts), batch_size):
            report(Event(stage="record", done=start, total=len(prompts)))
            part = prompts[start : start + batch_size]
            keeper.begin(range(start, start + len(part)))
            latents = draw(pipeline, part, steps=steps, guidance=guidance, seed=seed + start)
            ends.append(latents)
    finally:
        handle.remove()
    report(Event(stage="record", done=len(prompts), total=len(prompts)))
    return Trajectories(
        prompts=tuple(prompts),
        steps=steps,
        guidance=guidance,
        calls=tuple(keeper.calls),
        latents=torch.cat(ends),
        seed=seed,
    )


@contextmanager
def listening(module: nn.Module, prompts: int = 1) -> Generator[list[Call], None, None]:
    """Lends a list to which every call of a denoiser is added while it draws so many prompts."""
    keeper = _Keeper()
    keeper.begin(range(prompts))
    handle = module.register_forward_hook(keeper.keep, with_kwargs=True)
    try:
        yield keeper.calls
    finally:
        handle.remove()


def draw(
    pipeline: DiffusionPipeline, prompts: Sequence[str], *, steps: int, guidance: float, seed: int
) -> torch.Tensor:
    """Returns the latents that `prompts` end in, float32 on the CPU; seed + i begins prompt i.

    Raises:
        UserError: the pipeline has no text encoder.
    """
    require_text(pipeline)
    with quiet(), torch.no_grad():
        done = cast(Any, pipeline)(
            prompt=list(prompts),
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed + i) for i in range(len(prompts))],
            output_type="latent",
        )
    return done.images.detach().float().cpu()


def replay(module: nn.Module, call: Call) -> torch.Tensor:
    """Returns what `module` predicts for a recorded call, on the module's own device."""
    place = next(module.parameters(), call.output).device
    args, kwargs = call.args, call.kwargs
    if place.type != "cpu":  # otherwise the very tensors of the call, which share what is equal
        args, kwargs = _moved(args, place), _moved(kwargs, place)
    return _prediction(module(*args, **kwargs))


def guided(output: torch.Tensor, call: Call, guidance: float) -> torch.Tensor:
    """Returns what the sampler makes of a prediction: e_u + g (e_c − e_u), or the prediction."""
    if not call.guided:
        return output
    blank, told = output.chunk(2)
    return blank + guidance * (told - blank)


def _prediction(output: Any) -> torch.Tensor:
    return cast(torch.Tensor, output[0] if isinstance(output, tuple) else output.sample)


def _moved(value: Any, place: torch.device) -> Any:
    """Returns `value` with every tensor in it on `place`."""
    if isinstance(value, torch.Tensor):
        return value.to(place)
    return _mapped(value, lambda item: _moved(item, place))


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Returns a dict, list or tuple with each item changed; anything else as it is."""
    if isinstance(value, dict):
        return {key: change(item) for key, item in cast(dict[str, Any], value).items()}
    if isinstance(value, list | tuple):
        kind = cast(Any, type(value))
        return kind(change(item) for item in cast(Sequence[Any], value))
    return value


class _Keeper:
    """Copies each call to the CPU; a tensor that comes again (the text) is kept once."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._prompts: tuple[int, ...] = ()
        self._step = 0
        self._known: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def begin(self, prompts: range) -> None:
        self._prompts, self._step, self._known = tuple(prompts), 0, {}

    def keep(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        given = args[1] if len(args) > 1 else kwargs.get("timestep", 0.0)
        timestep = float(given.reshape(-1)[0]) if isinstance(given, torch.Tensor) else float(given)
        self.calls.append(
            Call(
                step=self._step,
                timestep=timestep,
                prompts=self._prompts,
                args=cast(tuple[Any, ...], self._copy(args)),
                kwargs=cast(dict[str, Any], self._copy(kwargs)),
                output=_prediction(output).detach().cpu().clone(),
            )
        )
        self._step += 1

    def _copy(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if id(value) not in self._known:  # the original is held, so its id stays its own
                self._known[id(value)] = (value, value.detach().cpu().clone())
            return self._known[id(value)][1]
        return _mapped(value, self._copy)
