"""The compressed components in memory, and the pipeline around them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from vqdq.codecs.base import Packed
from vqdq.layers.quantized import pack
from vqdq.models.checkpoint import half
from vqdq.models.fused import split_projections_
from vqdq.models.input_ranges import prepare_attention_, prepare_inputs_
from vqdq.recipe import Plan

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def student(
    module: nn.Module,
    plan: Plan,
    packed: Mapping[str, Packed],
    changed: Mapping[str, torch.Tensor],
    smoothing: Mapping[str, torch.Tensor],
) -> nn.Module:
    """Returns a copy of a denoiser with packed layers, everything else rounded to 16 bits.

    Inputs and attention that `plan` quantizes are switched off, not calibrated
    (`calibrate_inputs_`).

    Args:
        changed: other tensors than the module's own, by state-dict key.
        smoothing: of the smoothed layers' inputs, by layer.
    """
    twin = rounded_twin(module, packed, changed)
    prepare_inputs_(twin, plan, smoothing)
    prepare_attention_(twin, plan)
    return twin


def rounded_twin(
    module: nn.Module, packed: Mapping[str, Packed], changed: Mapping[str, torch.Tensor]
) -> nn.Module:
    """Returns a copy of a module with packed layers, everything else rounded to 16 bits.

    What is tied stays tied, and projections that were fused are apart again, as in a file.

    Args:
        packed: by the module's own names.
        changed: other tensors than the module's own, by state-dict key.
    """
    memo: dict[int, Any] = {}
    for key, weight in packed.items():
        layer = module.get_submodule(key)
        # A copy, because its bias is shared with the layer and is rounded below.
        place = layer.get_parameter("weight").device
        memo[id(layer)] = copy.deepcopy(pack(layer, weight)).to(place)
    twin = copy.deepcopy(module, memo)  # packed layers stand in for the dense ones
    split_projections_(twin)
    stored = {f"{key}.{name}" for key, weight in packed.items() for name in weight.tensors}
    for key, tensor in twin.state_dict().items():
        if key not in stored:
            tensor.copy_(changed[key] if key in changed else half(tensor, key))
    return twin


def with_denoiser(
    pipeline: DiffusionPipeline,
    name: str,
    module: nn.Module,
    others: Mapping[str, nn.Module] | None = None,
) -> DiffusionPipeline:
    """Returns a pipeline with another denoiser; the other components but the scheduler are shared.

    Args:
        others: further components to put in place of the pipeline's own, by name.

    A scheduler counts its steps: two pipelines that take turns must not share one.
    """
    given = cast(Any, pipeline)
    parts = {**given.components, **(others or {}), name: module}
    parts["scheduler"] = copy.deepcopy(given.scheduler)
    settings = {
        key: value
        for key, value in given.config.items()
        if key not in parts and not key.startswith("_")
    }
    twin = type(given)(**parts, **settings)
    twin.register_to_config(_name_or_path=given.config.get("_name_or_path"))
    twin.set_progress_bar_config(**getattr(given, "_progress_bar_config", {}))
    return cast("DiffusionPipeline", twin)
