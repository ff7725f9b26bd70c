"""A whole checkpoint in one .safetensors file, in the layouts in which people publish them.

Stable Diffusion's own layout (SD 1, 2, XL), those of SD 3 and FLUX, ComfyUI's, and diffusers' own
names without a folder around them. diffusers knows the names; here its conversions run on traced
tensors (`vqdq.models.tracing`), so that what a file holds is known from its header, and each tensor
is made when it is written. A conversion counts only if it gives every tensor of the component with
the shape that the component's config says, and leaves none of the denoiser's over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vqdq.errors import UserError
from vqdq.models import tracing
from vqdq.models.weights import WeightFile, open_weights
from vqdq.tensors import TensorSpec

Tensors = dict[str, torch.Tensor]
DENOISER = "model.diffusion_model."
_PREFIXES = ("", DENOISER, "diffusion_model.", "transformer.", "unet.")
_OTHERS = (
    "first_stage_model.", "vae.", "cond_stage_model.", "conditioner.", "text_encoders.",
    "model_ema.", "text_encoder.", "text_encoder_2.", "text_encoder_3.", "denoiser.",
    "alphas_", "betas", "sqrt_", "log_one_minus", "posterior_", "edm_", "embedding_manager.",
)  # fmt: skip
_VAES = ("first_stage_model.", "vae.")
# Text encoders in the order in which pipelines name them: prefix and layout.
_TEXT_ENCODERS = (
    ("cond_stage_model.transformer.", "clip"),
    ("cond_stage_model.model.", "open_clip"),
    ("conditioner.embedders.0.transformer.", "clip"),
    ("conditioner.embedders.0.model.", "open_clip"),
    ("conditioner.embedders.1.model.", "open_clip"),
    ("text_encoders.clip_l.transformer.", "clip"),
    ("text_encoders.clip_g.transformer.", "clip"),
    ("text_encoders.t5xxl.transformer.", "t5"),
    ("text_encoder.", "plain"),
    ("text_encoder_2.", "plain"),
    ("text_encoder_3.", "plain"),
)
_ADAPTERS = ("lora_up", "lora_down", "lora_A", "lora_B", "lora_te", "hada_w1", "oft_blocks")
_QUANTIZED = {
    ".absmax": "bitsandbytes",
    ".quant_map": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".qweight": "a 4-bit quantizer",
    ".scale_weight": "ComfyUI's scaled fp8",
    "scaled_fp8": "ComfyUI's scaled fp8",
    ".comfy_quant": "ComfyUI",
    ".weight_scale": "a quantizer",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SingleFile:
    """A checkpoint by its header.

    Attributes:
        weights: its checked header.
        family: diffusers' name for what the names in it say ("v1", "xl_base", "flux-dev").
        hub_id: where the family's folder is published; completes the file when nothing else does.
    """

    weights: WeightFile
    family: str
    hub_id: str

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.weights.path

    @property
    def contents(self) -> tuple[str, ...]:
        """What it holds, in words."""
        keys = self.weights.tensors
        encoders = sum(_any(keys, prefix) for prefix, _ in _TEXT_ENCODERS)
        words = ["the denoiser"]
        words += ["the VAE"] if any(_any(keys, prefix) for prefix in _VAES) else []
        words += [f"{encoders} text encoder{'s' if encoders > 1 else ''}"] if encoders else []
        return tuple(words)


def open_single_file(path: Path) -> SingleFile:
    """Returns what a checkpoint is; reads its header only.

    Raises:
        UserError: damaged, pickled, quantized already, or no checkpoint of a text-to-image model.
    """
    weights = open_weights(path)
    keys = weights.tensors
    place = str(path)
    for key in keys:
        program = next((by for end, by in _QUANTIZED.items() if key.endswith(end)), None)
        if program is not None:
            raise UserError(
                f"is quantized already, by {program} ({key}).",
                where=place,
                remedy="Start from the checkpoint in 16 or 32 bits that it was made of.",
            )
    if any(word in key for key in keys for word in _ADAPTERS):
        raise UserError(
            "is an adapter (LoRA), not a model.",
            where=place,
            remedy="Name the model, and load the adapter afterwards with load_lora_weights.",
        )
    family = _family(keys)
    if family is None:
        shown = ", ".join(sorted(keys)[:3]) or "nothing"
        raise UserError(
            f"is no checkpoint of a text-to-image model that is known here: it holds {shown}.",
            where=place,
            remedy="Expected is a denoiser of SD 1, 2, XL, 3, FLUX, or in diffusers' names.",
        )
    from diffusers.loaders.single_file_utils import DIFFUSERS_DEFAULT_PIPELINE_PATHS

    known: Any = DIFFUSERS_DEFAULT_PIPELINE_PATHS
    return SingleFile(
        weights=weights, family=family, hub_id=known[family]["pretrained_model_name_or_path"]
    )


def _family(keys: Mapping[str, TensorSpec]) -> str | None:
    """Returns diffusers' name of the family, or None when there is no denoiser."""
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    stripped = _denoiser_keys(keys)
    named = ""
    if "input_blocks.0.0.weight" in stripped:
        if "label_emb.0.0.weight" in stripped:
            named = "xl_refiner" if _context_width(stripped) == 1280 else "xl_base"
    elif "conv_in.weight" in stripped and "down_blocks.0.resnets.0.conv1.weight" in stripped:
        return _of_diffusers_unet(stripped)
    elif "single_transformer_blocks.0.attn.to_q.weight" in stripped:
        guided = any("guidance_embedder" in key for key in stripped)
        return "flux-dev" if guided else "flux-schnell"
    elif "transformer_blocks.0.attn.add_q_proj.weight" in stripped:
        return "sd35_large" if "transformer_blocks.37.norm1.linear.weight" in stripped else "sd3"
    # diffusers asks for some names with the prefix and for some without
    shapes: Any = tracing.trace(replace(spec, name=key) for key, spec in stripped.items())
    shapes |= {DENOISER + key: tensor for key, tensor in shapes.items()}
    shapes |= tracing.trace(spec for key, spec in keys.items() if key.startswith(_OTHERS))
    try:
        inferred: str = infer_diffusers_model_type(shapes)
    except (KeyError, IndexError, ValueError, UnboundLocalError):
        return None
    if inferred == "v1":  # what diffusers says of anything that it does not know
        if "joint_blocks.0.x_block.attn.qkv.weight" in stripped:
            return "sd3"  # of another width than the published ones
        if "input_blocks.0.0.weight" not in stripped:
            return None
        return named or "v1"
    return inferred


def _of_diffusers_unet(keys: Mapping[str, TensorSpec]) -> str:
    width = _context_width(keys)
    if "add_embedding.linear_1.weight" in keys:
        return "xl_refiner" if width == 1280 else "xl_base"
    return "v2" if width == 1024 else "v1"


def _context_width(keys: Mapping[str, TensorSpec]) -> int:
    """Returns the width of the text embeddings that a UNet takes; 0 for one that takes none."""
    found = (spec.shape for key, spec in keys.items() if key.endswith("attn2.to_k.weight"))
    return next((shape[-1] for shape in found if shape), 0)


def _denoiser_keys(keys: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """Returns the denoiser's tensors by their names without the prefix."""
    for prefix in _PREFIXES[1:]:
        found = {key.removeprefix(prefix): keys[key] for key in keys if key.startswith(prefix)}
        if found:
            return found
    return {key: spec for key, spec in keys.items() if not key.startswith(_OTHERS)}


def converted_denoiser(
    file: SingleFile, ghost: nn.Module, config: Mapping[str, Any], where: str
) -> Tensors:
    """Returns the denoiser's tensors, traced, by the names that its class has for them.

    Args:
        ghost: the denoiser of the base, on the meta device; config: its config.
        where: names the base in errors.

    Raises:
        UserError: the file does not hold what the config describes, or holds more.
    """
    traced = tracing.trace(file.weights.tensors.values())
    prefix = next((p for p in _PREFIXES[1:] if any(key.startswith(p) for key in traced)), "")
    own = {
        key.removeprefix(prefix): tensor
        for key, tensor in traced.items()
        if key.startswith(prefix) and (prefix or not key.startswith(_OTHERS))
    }
    wanted = ghost.state_dict()
    found = own if wanted.keys() <= own.keys() else _by_diffusers(type(ghost), own, config)
    _require_whole(found, wanted, file, where)
    used = {key for name in wanted for key in tracing.sources(found[name])}
    left = sorted({key for tensor in own.values() for key in tracing.sources(tensor)} - used)
    if left:
        raise UserError(
            f"{len(left)} tensors of the denoiser have no place in {where}, such as {left[0]}.",
            where=str(file.path),
            remedy="The base is of another family or size: name another one with --base.",
        )
    return {name: found[name] for name in wanted}


def converted_vae(
    file: SingleFile, ghost: nn.Module, config: Mapping[str, Any], where: str
) -> Tensors | None:
    """Returns the autoencoder's tensors, traced, or None when the file has no autoencoder.

    Raises:
        UserError: it has one that the config does not describe.
    """
    traced = tracing.trace(file.weights.tensors.values())
    prefix = next((p for p in _VAES if _any(traced, p)), None)
    if prefix is None:
        return None
    own = {k.removeprefix(prefix): tensor for k, tensor in traced.items() if k.startswith(prefix)}
    wanted = ghost.state_dict()
    if not wanted.keys() <= own.keys():
        own = _by_diffusers(type(ghost), {f"vae.{k}": v for k, v in own.items()}, config)
    _require_whole(own, wanted, file, where)
    return {name: own[name] for name in wanted}


def converted_text_encoders(
    file: SingleFile, ghosts: Mapping[str, nn.Module], where: str
) -> dict[str, Tensors]:
    """Returns the tensors of the text encoders that are in the file, traced, by component.

    Args:
        ghosts: the base's text encoders on the meta device, by component.

    Raises:
        UserError: the file has a text encoder that fits none of them.
    """
    traced = tracing.trace(file.weights.tensors.values())
    free = dict(ghosts)
    found: dict[str, Tensors] = {}
    for prefix, layout in _TEXT_ENCODERS:
        if not _any(traced, prefix):
            continue
        for name, ghost in free.items():
            tensors = _text_encoder(layout, prefix, traced, ghost)
            if tensors is not None:
                found[name] = tensors
                del free[name]
                break
        else:
            raise UserError(
                f"its text encoder ({prefix}…) fits none of {where}.",
                where=str(file.path),
                remedy="The base is of another family or size: name another one with --base.",
            )
    return found


def _text_encoder(layout: str, prefix: str, traced: Tensors, ghost: nn.Module) -> Tensors | None:
    """Returns the tensors of one text encoder if they are exactly those of `ghost`."""
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    own = {key: tensor for key, tensor in traced.items() if key.startswith(prefix)}
    if layout == "open_clip":
        own = convert_open_clip_checkpoint(ghost, own, prefix=prefix)
    else:
        own = {key.removeprefix(prefix): tensor for key, tensor in own.items()}
    wanted = ghost.state_dict()
    if not any(name.startswith("text_model.") for name in wanted):
        own = {key.removeprefix("text_model."): tensor for key, tensor in own.items()}
    projection = "text_projection.weight"
    if prefix == "text_encoders.clip_l.transformer." and projection in wanted.keys() - own.keys():
        width = wanted[projection].shape[0]  # SD 3 leaves out what is the identity in CLIP-L
        own[projection] = torch.eye(width, dtype=next(iter(own.values())).dtype)
    tied: Any = getattr(ghost, "all_tied_weights_keys", None) or {}
    wanted = {name: tensor for name, tensor in wanted.items() if name in own or name not in tied}
    if any(name not in own or own[name].shape != tensor.shape for name, tensor in wanted.items()):
        return None
    return {name: own[name] for name in wanted}


def _by_diffusers(kind: type[nn.Module], own: Tensors, config: Mapping[str, Any]) -> Tensors:
    """Returns what diffusers' conversion for a class makes; nothing where it does not fit."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    known: Any = SINGLE_FILE_LOADABLE_CLASSES
    entry = next((known[base.__name__] for base in kind.__mro__ if base.__name__ in known), None)
    if entry is None:
        return {}
    if kind.__name__ == "UNet2DConditionModel":
        own = {DENOISER + key: tensor for key, tensor in own.items()}
    try:
        made: Any = entry["checkpoint_mapping_fn"](checkpoint=dict(own), config=dict(config))
    except (KeyError, IndexError, ValueError, AttributeError, TypeError, RuntimeError):
        return {}
    return {name: tensor for name, tensor in made.items() if tensor is not None}


def _require_whole(found: Tensors, wanted: Tensors, file: SingleFile, where: str) -> None:
    for name, tensor in wanted.items():
        if name in found and found[name].shape == tensor.shape:
            continue
        fact = f"is {list(found[name].shape)}" if name in found else "is missing"
        raise UserError(
            f"{name} {fact}, {where} says {list(tensor.shape)}.",
            where=str(file.path),
            remedy="The file is incomplete, or the base is of another family or size: name "
            "another one with --base.",
        )


def specs_of(tensors: Tensors) -> Sequence[TensorSpec]:
    """Returns the specs of traced tensors."""
    return [TensorSpec.of(name, tensor) for name, tensor in tensors.items()]


def _any(keys: Mapping[str, object], prefix: str) -> bool:
    return any(key.startswith(prefix) for key in keys)
