"""What a pipeline gives its denoiser first: is the batch doubled, how many tokens has the text?

A guided pipeline draws both halves in one batch, one with embedded guidance (FLUX) draws one; a
tokenizer says how much it could hold, a pipeline takes less. Only a call tells, so one is begun and
given up before the denoiser computes anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from vqdq.models.denoisers import denoiser
from vqdq.models.generate import require_text
from vqdq.models.quiet import quiet

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstCall:
    """What the denoiser is given for one prompt.

    Attributes:
        doubled: the batch holds the unconditional, then the conditional half.
        text_tokens: how many tokens it reads; None when it is given none.
    """

    doubled: bool
    text_tokens: int | None


class _Seen(Exception):
    """Ends the drawing that was only begun."""


def first_call(pipeline: DiffusionPipeline, prompt: str, *, guidance: float) -> FirstCall:
    """Returns what the first call would be; the text is encoded, nothing is drawn.

    Raises:
        UserError: the pipeline has no text encoder.
    """
    require_text(pipeline)
    found: list[FirstCall] = []

    def look(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sample = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
        text = args[2] if len(args) > 2 else kwargs.get("encoder_hidden_states")
        found.append(
            FirstCall(
                doubled=isinstance(sample, torch.Tensor) and len(sample) == 2,
                text_tokens=int(text.shape[1]) if isinstance(text, torch.Tensor) else None,
            )
        )
        raise _Seen

    handle = denoiser(pipeline)[1].register_forward_pre_hook(look, with_kwargs=True)
    try:
        with quiet(), torch.no_grad():
            cast(Any, pipeline)(
                prompt=prompt, num_inference_steps=2, guidance_scale=guidance, output_type="latent"
            )
    except _Seen:
        pass
    finally:
        handle.remove()
    return found[0] if found else FirstCall(doubled=guidance > 1, text_tokens=None)
