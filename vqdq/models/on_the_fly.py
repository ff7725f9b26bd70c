"""Compression while a 16-bit component is loaded: `quantization_config=VqdqConfig.of(recipe)`.

It works from the weights alone, as they are stored: the same bytes as `vqdq.compress`, whatever
dtype the component is loaded in.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from vqdq.errors import UserError
from vqdq.layers.attention import attention_places
from vqdq.layers.matrix import to_matrix
from vqdq.layers.quantized import QuantizedLayer, pack
from vqdq.layers.text_cache import keep_text_
from vqdq.models.checkpoint import quantization_config
from vqdq.models.denoisers import layers_of, skeleton
from vqdq.models.encoding import encode_layer
from vqdq.models.input_ranges import (
    calibrate_inputs_,
    needs_calls,
    prepare_attention_,
    prepare_inputs_,
)
from vqdq.models.packed_config import VqdqConfig
from vqdq.models.teacher import Teacher
from vqdq.progress import silent
from vqdq.recipe import Component, Plan, PlannedLayer, Recipe, resolve
from vqdq.tensors import TensorSpec


def planned(config: VqdqConfig, component: Component) -> Plan:
    """Returns the plan of a component that is being loaded.

    Raises:
        UserError: a fault of the recipe, or one that asks for prompts.
    """
    recipe = replace(Recipe.from_json(config.recipe), components=())
    plan = resolve(recipe, component)
    if recipe.calibration is not None or recipe.finetune is not None or needs_calls(plan):
        raise UserError(
            f"{recipe.name} runs the model on prompts, which is not loaded yet.",
            where="quantization_config",
            remedy="Load it in 16 bits and use vqdq.compress(pipeline, recipe).",
        )
    return plan


def model_component(model: nn.Module) -> Component:
    """Returns the layers and tensors of a model of diffusers that is still without weights."""
    kind = type(model).__name__
    ghost = skeleton({**cast(Any, model).config, "_class_name": kind}, where=kind)
    return Component(
        name=kind,
        layers=layers_of(ghost),
        tensors=tuple(TensorSpec.of(key, tensor) for key, tensor in model.state_dict().items()),
        attentions=attention_places(ghost),
    )


def packed_layer(
    layer: nn.Module, weight: torch.Tensor, item: PlannedLayer, seed: int, device: object
) -> QuantizedLayer:
    """Returns the packed layer that takes the place of a dense one.

    Args:
        weight: as it is stored.
        device: of the packed tensors.
    """
    matrix = to_matrix(weight.detach().cpu())
    found = encode_layer(matrix, item, seed, silent).packed
    tensors = {key: tensor.to(device) for key, tensor in found.tensors.items()}  # type: ignore[call-overload]
    return pack(layer, replace(found, tensors=tensors))


def finish_(model: nn.Module, plan: Plan) -> None:
    """Quantizes the inputs that `plan` quantizes, from now on."""
    prepare_inputs_(model, plan)
    prepare_attention_(model, plan)
    calibrate_inputs_(model, plan, Teacher("none"), silent)  # nothing in it asks the teacher
    keep_text_(model)


def settled(plan: Plan) -> VqdqConfig:
    """Returns what the component's `config.json` says from now on."""
    return VqdqConfig(**quantization_config(plan))
