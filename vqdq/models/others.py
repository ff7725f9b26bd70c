"""The components beside the denoiser compressed in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from vqdq.models.checkpoint import quantization_config
from vqdq.models.hub import attach_
from vqdq.models.layerwise import counted, encoded
from vqdq.models.packed_config import VqdqConfig
from vqdq.models.parts import Inner, live
from vqdq.models.students import rounded_twin
from vqdq.progress import Report
from vqdq.recipe import Plan

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def other_students(pipeline: DiffusionPipeline, plan: Plan, report: Report) -> dict[str, nn.Module]:
    """Returns compressed copies of the components that `plan` names beside the denoiser, by name.

    Raises:
        UserError: a fault of the weights (the layer is named).
    """
    made: dict[str, nn.Module] = {}
    plans = (plan, *plan.others)
    for place, other in enumerate(plan.others, 1):
        name = other.component.name
        module: nn.Module = cast(Any, pipeline).components[name]
        made[name] = student_of(module, live(name, module), other, counted(report, plans, place))
    return made


def student_of(module: nn.Module, inner: Inner, plan: Plan, report: Report) -> nn.Module:
    """Returns a compressed copy of one component, which opens and saves like one from a file."""
    state, paths = module.state_dict(), inner.paths()
    own = {key: inside for inside, key in inner.keys.items()}

    def read(key: str) -> torch.Tensor | None:
        return state[own[key]].cpu() if key in own else None

    packed = {
        paths[planned.layer.name]: layer.packed
        for planned, layer in encoded(plan, plan.quantized, read, None, {}, report)
    }
    twin = rounded_twin(module, packed, {})
    config = VqdqConfig(**quantization_config(plan))
    if inner.component.guarded:
        from vqdq.models.text_hub import attach_text_  # heavy: transformers

        attach_text_(twin, config, {name: paths[name] for name in config.layers})
    else:
        attach_(twin, config)
    return twin
