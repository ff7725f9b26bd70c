"""One picture from a prompt and a seed: equal seeds start from equal noise, on every device."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import math
import statistics
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from vqdq.errors import UserError
from vqdq.models.denoisers import denoiser
from vqdq.models.quiet import quiet
from vqdq.models.sources import empty_text
from vqdq.progress import Event, Report, silent

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL.Image import Image

MAX_PROMPT = 2000
MAX_STEPS = 1000
MAX_GUIDANCE = 100.0


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateResult:
    """A picture and what made it.

    Attributes:
        image: PIL, RGB.
        seconds: wall time, text encoding and decoding of the latent included.
        once_seconds: of these, what the first call of the denoiser took longer than the median one:
            weights are decoded or packed there, kernels prepared. 0 on a card, which is not waited
            for, and for fewer than three calls.
        latents: final latent, float32 [1, ...] on the CPU, before the autoencoder.
        initial_latent_sha256: of the noise that the denoiser saw first; equal for equal seeds.
        notice: what a person should know (a cut prompt), or "".
    """

    image: Image
    seconds: float
    once_seconds: float
    latents: torch.Tensor = field(repr=False)
    initial_latent_sha256: str
    notice: str


def check_request(*, prompt: str, seed: int, steps: int, guidance: float) -> None:
    """Raises `UserError` for a prompt, seed, number of steps or guidance that is out of range.

    An empty prompt is legal: the model then draws whatever it likes.
    """
    if len(prompt) > MAX_PROMPT:
        raise UserError(
            f"{len(prompt)} characters are too many.",
            where="prompt",
            remedy=f"Use at most {MAX_PROMPT}; models read far fewer.",
        )
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            "holds half a character (an unpaired surrogate).",
            where="prompt",
            remedy="Type it again.",
        ) from error
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UserError(f"{seed!r} is out of range.", where="seed", remedy="Use 0 to 2^63 - 1.")
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MAX_STEPS:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UserError(f"{steps!r} is out of range.", where="steps", remedy="Use 1 to 1000.")
    if not math.isfinite(guidance) or not 0 <= guidance <= MAX_GUIDANCE:
        raise UserError(f"{guidance!r} is out of range.", where="guidance", remedy="Use 0 to 100.")


def require_text(pipeline: DiffusionPipeline) -> None:
    """Raises `UserError` for a pipeline whose text encoders or tokenizers are all left empty."""
    parts = cast(dict[str, object], getattr(pipeline, "components", {}))
    empty = empty_text(parts, lambda part: part is None)
    if empty:
        words = ", ".join(f"{name}/" for name in empty)
        raise UserError(
            f"cannot draw from a prompt without {', '.join(empty)}: its model_index.json leaves"
            " them empty.",
            where=str(getattr(pipeline, "name_or_path", "") or ""),
            remedy=f"Copy {words} of the model it was made from into its folder, and name them in"
            " its model_index.json. It can be compressed without.",
        )


def generate(
    pipeline: DiffusionPipeline,
    *,
    prompt: str,
    seed: int,
    steps: int,
    guidance: float,
    report: Report = silent,
    capture: AbstractContextManager[object] | None = None,
) -> GenerateResult:
    """Returns one picture.

    Args:
        pipeline: any text-to-image pipeline of diffusers.
        prompt: at most 2000 characters; may be empty. What the text encoder cannot hold is cut, and
            `notice` says so.
        seed: 0 to 2^63 - 1, of a generator on the CPU.
        steps: 1 to 1000; guidance: 0 to 100.
        report: is called before every call of the denoiser, so that Cancel acts within a step.
        capture: a context that is open while the picture is drawn (a recorder's).

    Raises:
        UserError: an argument out of range, or the pipeline has no text encoder.
    """
    require_text(pipeline)
    check_request(prompt=prompt, seed=seed, steps=steps, guidance=guidance)
    watch = _Watch(steps=steps, report=report)
    module = denoiser(pipeline)[1]
    call = cast(Any, pipeline)
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        stack.callback(module.register_forward_pre_hook(watch.before, with_kwargs=True).remove)
        stack.enter_context(capture or contextlib.nullcontext())
        stack.enter_context(quiet())  # a cut prompt is said in `notice`
        stack.enter_context(torch.no_grad())
        kept = call(
            prompt=prompt,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(seed),
            output_type="pil",
            **watch.callback(pipeline),
        )
        notice = _notice(pipeline, prompt)
    report(Event(stage="generate", done=steps, total=steps))
    return GenerateResult(
        image=kept.images[0],
        seconds=time.perf_counter() - started,
        once_seconds=watch.once_seconds if pipeline.device.type == "cpu" else 0.0,
        latents=watch.latents if watch.latents is not None else torch.empty(0),
        initial_latent_sha256=watch.initial,
        notice=notice,
    )


class _Watch:
    """Sees the first noise and the last latent, and reports between the steps."""

    def __init__(self, *, steps: int, report: Report) -> None:
        self._steps, self._report, self._done = steps, report, 0
        self.initial = ""
        self.starts: list[float] = []
        self.latents: torch.Tensor | None = None

    def before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        done = min(self._done, self._steps)
        self._report(Event(stage="generate", done=done, total=self._steps))
        if not self.initial:
            given = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
            noise = cast(torch.Tensor, given)[:1].detach().float().cpu().contiguous()
            self.initial = hashlib.sha256(noise.numpy().tobytes()).hexdigest()
        self.starts.append(time.perf_counter())

    @property
    def once_seconds(self) -> float:
        """See `GenerateResult`; a call is timed until the next one begins."""
        taken = [after - before for before, after in pairwise(self.starts)]
        return max(0.0, taken[0] - statistics.median(taken[1:])) if len(taken) > 1 else 0.0

    def callback(self, pipeline: DiffusionPipeline) -> dict[str, Any]:
        """Returns the keyword that makes the pipeline tell us about its steps, if it can."""
        known = inspect.signature(cast(Any, pipeline).__call__).parameters
        return {"callback_on_step_end": self._step} if "callback_on_step_end" in known else {}

    def _step(self, _pipeline: object, step: int, _time: object, values: Any) -> Any:
        self._done = step + 1
        if "latents" in values:
            self.latents = values["latents"].detach().float().cpu()
        return values


def _notice(pipeline: DiffusionPipeline, prompt: str) -> str:
    tokenizer = getattr(pipeline, "tokenizer", None)
    limit = getattr(tokenizer, "model_max_length", None)
    if tokenizer is None or not isinstance(limit, int) or limit > 1_000_000:
        return ""
    count = len(tokenizer(prompt, verbose=False).input_ids)
    if count <= limit:
        return ""
    return (
        f"The text encoder holds {limit} tokens; the prompt has {count}, so its end was not read."
    )
