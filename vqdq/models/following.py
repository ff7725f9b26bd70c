"""Several models on their way from the same noise: latents after every step, and what they show.

Teacher-forced, a variant predicts from the latents of the reference, and one step of the sampler is
taken from there; free-running, it follows its own. What the sampler was given and gave is noted
where the pipeline calls it, so guidance and everything a pipeline does to a prediction is in it.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import numpy.typing as npt
import torch

from vqdq.capture import archive
from vqdq.capture.along import Along, TrajectoryRecord
from vqdq.errors import UserError
from vqdq.models.denoisers import denoiser
from vqdq.models.trajectory import Call, draw, guided, record, replay
from vqdq.progress import Event, Report, silent

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

PREVIEW_BYTES = 32_000_000
PREVIEW_SECONDS = 3.0
_KIND, _VERSION = "following", 2


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Following:
    """Where the latents of each model are after each step, from the same noise.

    Attributes:
        labels: of the models, the reference first.
        prompts: what was drawn; prompt i from the noise of `seed` + i.
        steps, guidance, seed: of the drawing; `timesteps`: of each step.
        latents: after each step, float32 [models, prompts, steps, ...].
        shown: the steps that have a preview, from 0; the last is always among them.
        previews: of the latents of the first prompt after those steps, uint8
            [models, shown, h, w, 3]; nothing where the pipeline's latents are no map.
        previewed: how: "decoded" by the autoencoder, or "linear": a linear map from the channels of
            the latents to colours, fitted to the decoded end, one pixel for each latent one.
        errors: of each variant, along the way.
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
    previewed: str
    errors: tuple[TrajectoryRecord, ...]

    def save(self, path: Path) -> None:
        """Writes the record to one `.npz` file, atomically."""
        entry, arrays = archive.flatten(self, "way")
        entry["errors"] = []
        for index, each in enumerate(self.errors):
            found, more = archive.flatten(each, f"errors/{index}")
            found["context"] = dict(each.context)
            entry["errors"].append(found)
            arrays |= more
        archive.save(path, {"kind": _KIND, "version": _VERSION, "record": entry}, arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Returns the record saved at `path`.

        Raises:
            UserError: no record, a damaged one, or one of another version.
        """
        header, arrays = archive.load(path, kind=_KIND, version=_VERSION)
        entry = dict(header["record"])
        errors = [
            archive.restore(TrajectoryRecord, each, arrays, f"errors/{index}")
            for index, each in enumerate(entry.pop("errors"))
        ]
        return archive.restore(cls, entry | {"errors": errors}, arrays, "way")


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
    preview_seconds: float = PREVIEW_SECONDS,
    report: Report = silent,
) -> Following:
    """Returns the ways of all models, and each variant's error along them; models stay as they are.

    All prompts are drawn in one batch, the same for every model.

    Args:
        variants: by label.
        preview_bytes, preview_seconds: see `together`.
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
    check_sampler(reference, calls, own, guidance)
    ways, errors = {"reference": own}, list[TrajectoryRecord]()
    for label, variant in variants.items():
        report(Event(stage="follow", done=done + 1, total=total, message=f"{label}, on its own"))
        with noted(variant) as free:
            draw(variant, prompts, steps=steps, guidance=guidance, seed=seed)
        report(Event(stage="follow", done=done + 2, total=total, message=f"{label}, led"))
        module = denoiser(variant)[1]
        with torch.no_grad():
            led = {call.step: replay(module, call) for call in calls}
        ways[label] = free
        errors.append(astray(label, calls, own, free, led, guidance=guidance, seed=seed))
        done += 2
    report(Event(stage="follow", done=total, total=total, message="decoding"))
    return together(
        reference,
        ways,
        errors,
        prompts=prompts,
        guidance=guidance,
        seed=seed,
        preview_bytes=preview_bytes,
        preview_seconds=preview_seconds,
    )


def check_sampler(
    pipeline: DiffusionPipeline, calls: Sequence[Call], own: Sequence[Turn], guidance: float
) -> None:
    """Raises `UserError` unless each call of the denoiser is one of the sampler, with guidance.

    Only then can a prediction for a recorded call be taken for one of the sampler's.
    """
    if len(own) != len(calls):
        raise UserError(
            f"the sampler was called {len(own)} times, the denoiser {len(calls)} times.",
            where=type(pipeline).__name__,
            remedy="Use a pipeline that predicts once a step.",
        )
    for call, turn in zip(calls, own, strict=True):
        found, given = _sampled(call.output, call, turn, guidance), turn.prediction
        if found.shape != given.shape or (found - given).norm() > 1e-2 * given.norm():
            raise UserError(
                "the pipeline does more to a prediction than guidance.",
                where=type(pipeline).__name__,
                remedy="Draw without its extra settings.",
            )


def astray(
    label: str,
    calls: Sequence[Call],
    own: Sequence[Turn],
    free: Sequence[Turn],
    led: Mapping[int, torch.Tensor],
    *,
    guidance: float,
    seed: int,
) -> TrajectoryRecord:
    """Returns how far a variant strays from the reference at each step.

    Args:
        calls, own: of the reference; `free`: the variant's turns on its own way.
        led: by step, what the variant's denoiser gives for the reference's calls, before guidance;
            steps that are left out are NaN.
    """
    along = Along(label=label, context={"guidance": guidance, "seed": seed})
    for step, (call, turn, alone) in enumerate(zip(calls, own, free, strict=True)):
        if step in led:
            found = _sampled(led[step], call, turn, guidance)
            with torch.no_grad():
                after = turn.again(found.to(turn.prediction.dtype)).float().cpu()
            along.add(step, turn.timestep, turn.prediction, found, latents=(turn.after, after))
        latents = (turn.after, alone.after)
        along.add(
            step, turn.timestep, turn.prediction, alone.prediction, latents=latents, free=True
        )
    return along.result()


def together(
    pipeline: DiffusionPipeline,
    ways: Mapping[str, Sequence[Turn]],
    errors: Sequence[TrajectoryRecord],
    *,
    prompts: Sequence[str],
    guidance: float,
    seed: int,
    preview_bytes: int = PREVIEW_BYTES,
    preview_seconds: float = PREVIEW_SECONDS,
) -> Following:
    """Returns the ways of models as one record, with previews.

    Args:
        pipeline: the reference: its autoencoder makes the previews.
        ways: by label, the reference first.
        preview_bytes: over all models. Where every step does not fit, steps are left out evenly;
            the last always stays. 0 shows nothing.
        preview_seconds: of one core that decoding may take; where it would take more, colours are
            fitted.
    """
    latents = np.stack([_stacked(way) for way in ways.values()])
    shown, previews, how = _previews(pipeline, latents, preview_bytes, preview_seconds)
    first = next(iter(ways.values()))
    return Following(
        labels=tuple(ways),
        prompts=tuple(prompts),
        steps=len(first),
        guidance=guidance,
        seed=seed,
        timesteps=tuple(turn.timestep for turn in first),
        latents=latents,
        shown=shown,
        previews=previews,
        previewed=how,
        errors=tuple(errors),
    )


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


def _sampled(output: torch.Tensor, call: Call, turn: Turn, guidance: float) -> torch.Tensor:
    """Returns what the sampler is given of a denoiser's output, float32 on the CPU.

    A model that predicts a variance too (PixArt) has twice the channels, the noise first.
    """
    found = guided(output, call, guidance).detach().float().cpu()
    wanted = turn.prediction.shape
    if found.ndim == len(wanted) and found.shape[1] == 2 * wanted[1]:
        found = found[:, : wanted[1]]
    return found


def _previews(
    pipeline: DiffusionPipeline, latents: npt.NDArray[np.float32], budget: int, seconds: float
) -> tuple[tuple[int, ...], npt.NDArray[np.uint8], str]:
    """Returns which steps are shown, the pictures of the first prompt after them, and how."""
    nothing = np.zeros((len(latents), 0, 0, 0, 3), dtype=np.uint8)
    parts = cast(Any, pipeline)
    if latents.ndim != 6 or getattr(parts, "vae", None) is None or budget <= 0:
        return (), nothing, ""
    models, _, steps = latents.shape[:3]
    started = time.thread_time()  # a busy machine decodes as cheaply as an idle one
    end = _decoded(parts, latents[:1, 0, -1])  # [1, h, w, 3]
    room = min(steps, budget // (models * end.nbytes))
    linear = (time.thread_time() - started) * models * max(room, 1) > seconds
    if linear:
        room = min(steps, budget // (models * latents[0, 0, 0, 0].size * 3))
    if room == 0:
        return (), nothing, ""
    shown = tuple(int(s) for s in np.linspace(0 if room > 1 else steps - 1, steps - 1, room))
    if linear:
        return shown, _fitted(latents[:, 0, list(shown)], latents[0, 0, -1], end[0]), "linear"
    found = np.stack([_decoded(parts, latents[:, 0, step]) for step in shown], axis=1)
    assert found.shape[:2] == (models, len(shown))
    return shown, found, "decoded"


def _fitted(
    latents: npt.NDArray[np.float32], end: npt.NDArray[np.float32], picture: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    """Returns colours of latents [..., channels, h, w], [..., h, w, 3]: the least squares of `end`.

    Args:
        end: latents [channels, h, w] that decode to `picture` [H, W, 3].
    """
    size = (end.shape[1], end.shape[2])
    values = torch.from_numpy(picture).permute(2, 0, 1).float()
    small = torch.nn.functional.adaptive_avg_pool2d(values, size).flatten(1).T.numpy()
    known = np.column_stack([end.reshape(len(end), -1).T, np.ones(size[0] * size[1])])
    fit = np.linalg.lstsq(known, small, rcond=None)[0]  # [channels + 1, 3]
    colours = np.moveaxis(latents, -3, -1) @ fit[:-1] + fit[-1]
    return np.clip(np.round(colours), 0, 255).astype(np.uint8)


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
