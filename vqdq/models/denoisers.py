"""The denoiser: found in a pipeline, or built without weights on the meta device.

Layer kinds come from the architecture itself, never from guesses about tensor shapes. For the
architectures in `dry_inputs` one dry run tells in which order the layers are executed (the up
blocks of a UNet are registered before its middle) and how many positions they see; other denoisers
are listed in the order of registration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from vqdq.errors import UserError
from vqdq.layers.surgery import candidates
from vqdq.models.bounds import BAD_CONFIG, bounded_modules, require_small
from vqdq.models.dry_inputs import dry_inputs
from vqdq.recipe import Layer

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

DENOISERS = ("unet", "transformer", "decoder", "prior")  # the last two: Stable Cascade


def denoiser(pipeline: DiffusionPipeline) -> tuple[str, nn.Module]:
    """Returns the name and the module of a pipeline's denoiser.

    Raises:
        UserError: the pipeline has no denoiser by any of the known names.
    """
    for name in DENOISERS:
        module = getattr(pipeline, name, None)
        if isinstance(module, nn.Module):
            return name, module
    raise UserError(
        "has no unet and no transformer.",
        where=type(pipeline).__name__,
        remedy="Use a text-to-image diffusion pipeline.",
    )


def skeleton(config: Mapping[str, Any], *, where: str = "config.json") -> nn.Module:
    """Returns the denoiser of a config on the meta device, unquantized.

    Raises:
        UserError: a class that diffusers does not know, or settings it does not take.
    """
    import diffusers

    name = config.get("_class_name")
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not isinstance(kind, type) or not issubclass(kind, diffusers.ModelMixin):
        raise UserError(
            f"the class {name!r} is not part of diffusers {diffusers.__version__}.",
            where=where,
            remedy="Use a model that diffusers itself can load, without code of its own.",
        )
    plain = {
        key: value
        for key, value in config.items()
        if key != "quantization_config" and (not key.startswith("_") or key == "_class_name")
    }
    require_small(plain, where)
    try:
        with bounded_modules(where), torch.device("meta"):
            model = cast(Any, kind).from_config(plain)
    except BAD_CONFIG as error:
        raise UserError(
            f"does not describe a {name}: {type(error).__name__}: {str(error)[:300]}.",
            where=where,
            remedy="Copy the model again.",
        ) from error
    ghost = cast(nn.Module, model)
    empty = next((key for key, tensor in ghost.named_parameters() if tensor.numel() == 0), None)
    if empty is not None:
        raise UserError(
            f"makes {empty} empty.", where=where, remedy="A size is zero: copy the model again."
        )
    return ghost


def layers_of(model: nn.Module) -> tuple[Layer, ...]:
    """Returns the candidate layers of a skeleton, in the order of execution where it is known.

    Raises:
        UserError: settings that cannot be run together.
    """
    try:
        inputs = dry_inputs(type(model).__name__, getattr(model, "config", None))
        if inputs is None:
            return candidates(model)
        with torch.no_grad():
            return candidates(model, lambda: model(**inputs))
    except BAD_CONFIG as error:
        raise UserError(
            f"no picture can be drawn with it: {type(error).__name__}: {str(error)[:300]}.",
            where=f"config.json of the {type(model).__name__}",
            remedy="Its settings contradict each other: copy the model again.",
        ) from error
