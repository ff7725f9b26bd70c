"""Where a loaded pipeline lies: on the processor, or on the graphics card while it draws."""

from __future__ import annotations

from typing import Any

import torch

from vqdq.errors import UserError
from vqdq.jobs.faults import card_faults


def require_device(device: str) -> None:
    """Raises `UserError` where pictures are to be drawn on a card and there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "there is no graphics card here.",
            where="device",
            remedy="Leave the device out: the processor draws. vqdq doctor says what torch sees.",
        )


def computing_dtype(device: str, component: str) -> torch.dtype:
    """Returns float32 on the processor, on a card 16 bits: what its units are made for, and half
    the memory.

    Args:
        component: of the denoiser. A "unet" computes in float16; transformers are trained in
            bfloat16, and what they hand on (T5's states, too) can be too large for float16.
    """
    if device != "cuda":
        return torch.float32
    wide = component != "unet" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if wide else torch.float16


def place_(pipeline: Any, device: str, label: str) -> None:
    """Moves all components of a pipeline to "cpu" or "cuda", unless they lie there.

    Packed weights that the mode leaves in the processor's memory stay there
    (`vqdq.layers.residency.set_mode_` with `offload`).

    Args:
        label: of the model, for people.

    Raises:
        UserError: there is no card, or it cannot hold the weights; the pipeline is on the processor
            then.
    """
    require_device(device)
    if pipeline.device.type == device:
        return
    if device == "cpu":
        pipeline.to(device)
        return
    from vqdq.models import room  # heavy: diffusers

    watch = room.CardWatch(pipeline, torch.device(device))
    try:
        with card_faults(label, watch.advice):
            pipeline.to(device)
    except UserError:
        pipeline.to("cpu")
        raise
