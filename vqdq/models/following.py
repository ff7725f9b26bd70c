"""Several models on their way from the same noise: latents after every step, and what they show.

Teacher-forced, a variant predicts from the latents of the reference, and one step of the sampler is
taken from there; free-running, it follows its own. What the sampler was given and gave is noted
where the pipeline calls it, so guidance and everything a pipeline does to a prediction is in it.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from vqdq.capture import archive
from vqdq.capture.along import Along, TrajectoryRecord
from vqdq.errors import UserError
from vqdq.models.denoisers import denoiser
from vqdq.models.trajectory import Call, draw, guided, record, replay
from vqdq.progress import Event, Report, silent

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

PREVIEW_BYTES = 32_000_000
_KIND, _VERSION = "following", 1


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Following:
    """Where the latents of each model are after each step, from the same noise.

    Attributes:
        labels: of the models, the reference first.
        prompts: what was drawn; prompt i from the noise of `seed` + i.
        steps, guidance, seed: of the drawing; `timesteps`: of each step.
        latents: after each step, float32 [models, prompts, steps, ...].
        shown: the steps that were decoded, from 0; the last is always among them.
        previews: the latents of the first prompt after those steps, decoded, uint8
            [models, shown, h, w, 3]; nothing where the pipeline's latents are no map.
    """

    labels: tuple[str, ...]
    prompts: tuple[str, ...]
    steps: int
    guidance: float
    seed: int
    timesteps: tuple[float, ...]
    latents: npt.NDArray[np.float32]
    shown: tuple[int, ...]
    previews: npt.NDArray[np.uint8]

    def save(self, path: Path) -> None:
        """Writes the record to one `.npz` file, atomically."""
        entry, arrays = archive.flatten(self, "way")
        archive.save(path, {"kind": _KIND, "version": _VERSION, "record": entry}, arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Returns the record saved at `path`.

        Raises:
            UserError: no record, a damaged one, or one of another version.
        """
        header, arrays = archive.load(path, kind=_KIND, version=_VERSION)
        return archive.restore(cls, header["record"], arrays, "way")


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One call of the sampler.

    Attributes:
        prediction: what it was given, guidance included; `before`, `after`: the latents.
        timestep: as the sampler calls it.
        again: takes the same step from `before` with another prediction.
    """

    prediction: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor
    timestep: float
    again: Callable[[torch.Tensor], torch.Tensor]


def follow(
    reference: DiffusionPipeline,
    variants: Mapping[str, DiffusionPipeline],
    prompts: Sequence[str],
    *,
    steps: int,
    guidance: float,
    seed: int = 0,
    preview_bytes: int = PREVIEW_BYTES,
    report: Report = silent,
) -> tuple[Following, tuple[TrajectoryRecord, ...]]:
    """Returns the ways of all models, and each variant's error along them; models stay as they are.

    All prompts are drawn in one batch, the same for every model.

    Args:
        variants: by label.
        preview_bytes: of decoded pictures, over all models. Where every step does not fit, steps
            are left out evenly; the last always stays. 0 decodes nothing.
        report: stage "follow", one unit a model and way; may raise `Cancelled`.

    Raises:
        UserError: no prompt or no step; a sampler whose calls are not those of the denoiser.
    """
    if not prompts or steps < 1:
        raise UserError("there is nothing to draw.", where="follow", remedy="Give a prompt.")
    total, done = 1 + 2 * len(variants), 0
    report(Event(stage="follow", done=done, total=total, message="the reference"))
    with noted(reference) as own:
        drawn = record(
            reference, prompts, steps=steps, guidance=guidance, seed=seed, batch_size=len(prompts)
        )
    calls = drawn.calls
    if len(own) != len(calls):
        raise UserError(
            f"the sampler was called {len(own)} times, the denoiser {len(calls)} times.",
            where=type(reference).__name__,
            remedy="Use a pipeline that predicts once a step.",
        )
    ways, records = [own], list[TrajectoryRecord]()
    for label, variant in variants.items():
        report(Event(stage="follow", done=done + 1, total=total, message=f"{label}, on its own"))
        with noted(variant) as free:
            draw(variant, prompts, steps=steps, guidance=guidance, seed=seed)
        report(Event(stage="follow", done=done + 2, total=total, message=f"{label}, led"))
        along = Along(label=label, context={"guidance": guidance, "seed": seed})
        _compare(along, denoiser(variant)[1], calls, own, free, drawn.guidance)
        ways.append(free)
        records.append(along.result())
        done += 2
    report(Event(stage="follow", done=total, total=total, message="decoding"))
    latents = np.stack([_stacked(way) for way in ways])
    shown, previews = _previews(reference, latents, preview_bytes)
    found = Following(
        labels=("reference", *variants),
        prompts=tuple(prompts),
        steps=len(own),
        guidance=guidance,
        seed=seed,
        timesteps=tuple(turn.timestep for turn in own),
        latents=latents,
        shown=shown,
        previews=previews,
    )
    return found, tuple(records)


@contextmanager
def noted(pipeline: DiffusionPipeline) -> Generator[list[Turn], None, None]:
    """Lends a list to which every step of the pipeline's sampler is added; nothing stays behind."""
    scheduler = cast(Any, pipeline).scheduler
    turns: list[Turn] = []
    original = scheduler.step
    had = "step" in scheduler.__dict__

    @functools.wraps(original)  # pipelines ask for its signature before they pass a generator
    def step(
        prediction: torch.Tensor, timestep: Any, sample: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        earlier = copy.deepcopy({k: v for k, v in scheduler.__dict__.items() if k != "step"})
        options = {key: _generators(value) for key, value in kwargs.items()}
        before = sample.detach().clone()

        def again(other: torch.Tensor) -> torch.Tensor:
            twin = copy.copy(scheduler)
            twin.__dict__.clear()
            twin.__dict__.update(copy.deepcopy(earlier))
            given = {key: _generators(value) for key, value in options.items()}
            return _after(twin.step(other, timestep, before, *args, **given))

        found = original(prediction, timestep, sample, *args, **kwargs)
        turns.append(
            Turn(
                prediction=prediction.detach().float().cpu().clone(),
                before=before.float().cpu(),
                after=_after(found).float().cpu().clone(),
                timestep=float(timestep),
                again=again,
            )
        )
        return found

    scheduler.__dict__["step"] = step
    try:
        yield turns
    finally:
        if had:
            scheduler.__dict__["step"] = original
        else:
            del scheduler.__dict__["step"]


def _compare(
    along: Along,
    module: nn.Module,
    calls: Sequence[Call],
    own: Sequence[Turn],
    free: Sequence[Turn],
    guidance: float,
) -> None:
    with torch.no_grad():
        for step, (call, turn, alone) in enumerate(zip(calls, own, free, strict=True)):
            led = guided(replay(module, call), call, guidance)
            after = turn.again(led.to(turn.prediction.dtype)).float().cpu()
            along.add(step, turn.timestep, turn.prediction, led, latents=(turn.after, after))
            latents = (turn.after, alone.after)
            along.add(
                step, turn.timestep, turn.prediction, alone.prediction, latents=latents, free=True
            )


def _previews(
    pipeline: DiffusionPipeline, latents: npt.NDArray[np.float32], budget: int
) -> tuple[tuple[int, ...], npt.NDArray[np.uint8]]:
    """Returns which steps are shown, and the pictures of the first prompt after them."""
    nothing = np.zeros((len(latents), 0, 0, 0, 3), dtype=np.uint8)
    parts = cast(Any, pipeline)
    if latents.ndim != 6 or getattr(parts, "vae", None) is None or budget <= 0:
        return (), nothing
    models, _, steps = latents.shape[:3]
    last = _decoded(parts, latents[:, 0, -1])  # [models, h, w, 3]
    room = min(steps, budget // last.nbytes)
    if room == 0:
        return (), nothing
    shown = tuple(int(s) for s in np.linspace(0 if room > 1 else steps - 1, steps - 1, room))
    pictures = [_decoded(parts, latents[:, 0, step]) for step in shown[:-1]]
    found = np.stack([*pictures, last], axis=1)
    assert found.shape[:2] == (models, len(shown))
    return shown, found


def _decoded(parts: Any, latents: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Returns pictures [n, h, w, 3] of latents [n, channels, h, w], as the pipeline makes them."""
    vae = parts.vae
    first = next(vae.parameters())
    values = torch.from_numpy(latents).to(first.device, first.dtype)
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    with torch.no_grad():
        found = vae.decode(values / vae.config.scaling_factor + shift, return_dict=False)[0]
    pictures = (found.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    return (pictures * 255).round().astype(np.uint8)


def _stacked(way: Sequence[Turn]) -> npt.NDArray[np.float32]:
    """Returns the latents after every step, [prompts, steps, ...]."""
    return torch.stack([turn.after for turn in way], dim=1).numpy()


def _after(found: Any) -> torch.Tensor:
    return cast(torch.Tensor, found[0] if isinstance(found, tuple) else found.prev_sample).detach()


def _generators(value: Any) -> Any:
    """Returns a generator, or each of a list, that will draw the same; anything else as it is."""
    if isinstance(value, torch.Generator):
        twin = torch.Generator(device=value.device)
        twin.set_state(value.get_state())
        return twin
    if isinstance(value, list):
        return [_generators(item) for item in cast(list[Any], value)]
    return value
