"""The pieces of fine-tuning: a student that learns, what it is asked, and how it is judged.

The one that learns computes in bfloat16 where the machine does that natively. The one that is
judged is the deliverable itself: packed tensors and parameters rounded as they are stored, computed
in float32.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from vqdq.codecs.base import Packed
from vqdq.layers.quantized import QuantizedLayer
from vqdq.layers.trainable import TrainableLayer, trainable
from vqdq.models.batches import Batch

_LARGEST = torch.finfo(torch.float16).max
_KEPT_SHARE = 0.1  # learning rate of whole weights (kept in 16 bits) against that of row scales
_SMALLEST = 1e-9  # share of the teacher's power below which an error counts as nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class Errors:
    """Mean squared errors by step, float64 [steps]: of each half, and of what guidance makes."""

    raw: torch.Tensor
    guided: torch.Tensor
    raw_power: torch.Tensor
    guided_power: torch.Tensor

    @property
    def raw_db(self) -> float:
        """10 log10(Σ‖teacher‖² / Σ‖error‖²) over all steps; inf when equal."""
        return _decibels(self.raw_power, self.raw)

    @property
    def guided_db(self) -> float:
        """The same of the guided prediction."""
        return _decibels(self.guided_power, self.guided)

    @property
    def finite(self) -> bool:
        """Whether the student predicts numbers at all."""
        return bool(torch.isfinite(self.raw).all() and torch.isfinite(self.guided).all())


class Objective:
    """Error by step against the one at the start, so that each step counts alike.

    (1 − a) raw / raw₀ + a guided / guided₀, mean over the steps: 1 at the start.
    """

    def __init__(self, start: Errors, guided_weight: float) -> None:
        self._raw = 1 / start.raw.maximum(_SMALLEST * start.raw_power).clamp_min(1e-30)
        self._guided = 1 / start.guided.maximum(_SMALLEST * start.guided_power).clamp_min(1e-30)
        self._share = guided_weight

    def of(self, errors: Errors) -> float:
        """Returns the value for errors by step."""
        raw, guided = errors.raw * self._raw, errors.guided * self._guided
        return float(((1 - self._share) * raw + self._share * guided).mean())

    def loss(self, prediction: torch.Tensor, batch: Batch, guidance: float) -> torch.Tensor:
        """Returns the value for one batch, with its gradient."""
        raw, guided = by_picture(prediction.float() - batch.output, batch, guidance)
        place = raw.device
        weight_raw = self._raw[batch.steps].to(place, raw.dtype)
        weight_guided = self._guided[batch.steps].to(place, raw.dtype)
        share = self._share
        return ((1 - share) * raw * weight_raw + share * guided * weight_guided).mean()


def by_picture(
    values: torch.Tensor, batch: Batch, guidance: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the mean squares [pictures] of both halves and of what guidance makes of them."""
    squares = values.square().flatten(1).mean(1)
    if not batch.guided:
        return squares, squares
    blank, told = values.chunk(2)
    guided = (blank + guidance * (told - blank)).square().flatten(1).mean(1)
    return squares.unflatten(0, (2, -1)).mean(0), guided


def learner(student: nn.Module, dtype: torch.dtype, *, codebooks: bool = True) -> nn.Module:
    """Returns a copy of `student` in which everything but codes learns, in float32.

    Args:
        dtype: of the decoded weights, which do not learn.
        codebooks: they learn where a layer has its own.
    """
    memo: dict[int, Any] = {}
    for layer in student.modules():
        if isinstance(layer, QuantizedLayer):
            memo[id(layer)] = trainable(layer, dtype, learn_codebooks=codebooks)
    twin = copy.deepcopy(student, memo)
    fixed = {id(layer.get_parameter("weight")) for layer in _learners(twin).values()}
    for parameter in twin.parameters():
        if id(parameter) not in fixed and parameter.is_floating_point():
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    for buffer in twin.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.float()
    return twin


def parameter_groups(twin: nn.Module, rate: float) -> list[dict[str, Any]]:
    """Returns what learns, for an optimizer: vectors at `rate`, whole kept weights at less."""
    vectors: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    codebooks = {id(layer.codebooks) for layer in _learners(twin).values()}
    for parameter in twin.parameters():
        if parameter.requires_grad:
            whole = parameter.ndim > 1 and id(parameter) not in codebooks
            (matrices if whole else vectors).append(parameter)
    return [
        {"params": vectors, "lr": rate, "rate": rate},
        {"params": matrices, "lr": _KEPT_SHARE * rate, "rate": _KEPT_SHARE * rate},
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A student as it is stored.

    Attributes:
        packed: by layer; `tensors`: its other floating parameters in float16, by state-dict key.
    """

    packed: dict[str, Packed]
    tensors: dict[str, torch.Tensor]


def stored(student: nn.Module) -> Stored:
    """Returns the packed layers and the other parameters of a student, or of one that learns."""
    packed: dict[str, Packed] = {}
    inner: set[str] = set()
    for name, layer in student.named_modules():
        if isinstance(layer, QuantizedLayer):
            packed[name] = layer.packed
        elif isinstance(layer, TrainableLayer):
            packed[name] = layer.learnt()
            inner |= {f"{name}.weight", f"{name}.change", f"{name}.codebooks"}
    tensors = {
        key: half(parameter)
        for key, parameter in student.named_parameters(remove_duplicate=False)
        if key not in inner and parameter.is_floating_point()
    }
    return Stored(packed=packed, tensors=tensors)


def half(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a copy in float16; what lies beyond its range stops at its end."""
    return tensor.detach().float().clamp(-_LARGEST, _LARGEST).half()


class Judge:
    """Measures stored students on the same held-out batches, in float32."""

    def __init__(
        self, student: nn.Module, batches: Sequence[Batch], guidance: float, num_steps: int
    ) -> None:
        self._module = copy.deepcopy(student).requires_grad_(False)
        self._layers = {
            name: layer
            for name, layer in self._module.named_modules()
            if isinstance(layer, QuantizedLayer)
        }
        for tensor in [*self._module.parameters(), *_plain_buffers(self._module)]:
            if tensor.is_floating_point():
                tensor.data = tensor.data.float()
        self._batches = batches
        self._guidance = guidance
        self._num_steps = num_steps

    def errors(self, candidate: Stored) -> Errors:
        """Returns the errors of `candidate`."""
        self._take(candidate.packed, candidate.tensors)
        sums = torch.zeros(5, self._num_steps, dtype=torch.float64)
        with torch.no_grad():
            for batch in self._batches:
                wrong = predict(self._module, batch) - batch.output
                columns = (
                    *by_picture(wrong, batch, self._guidance),
                    *by_picture(batch.output, batch, self._guidance),
                    torch.ones(len(batch.steps)),
                )
                for row, column in zip(sums, columns, strict=True):
                    row.index_add_(0, batch.steps, column.double().cpu())
        mean = sums[:4] / sums[4]
        return Errors(raw=mean[0], guided=mean[1], raw_power=mean[2], guided_power=mean[3])

    def _take(self, packed: Mapping[str, Packed], tensors: Mapping[str, torch.Tensor]) -> None:
        for name, layer in self._layers.items():
            for key, tensor in packed[name].tensors.items():
                layer.get_buffer(key).copy_(tensor)
            layer.release()
        with torch.no_grad():
            for key, tensor in tensors.items():
                self._module.get_parameter(key).copy_(tensor)


def predict(module: nn.Module, batch: Batch) -> torch.Tensor:
    """Returns what `module` predicts for a batch."""
    output = module(*batch.args, **batch.kwargs)
    return cast(torch.Tensor, output[0] if isinstance(output, tuple) else output.sample)


def _learners(module: nn.Module) -> dict[str, TrainableLayer]:
    return {n: layer for n, layer in module.named_modules() if isinstance(layer, TrainableLayer)}


def _plain_buffers(module: nn.Module) -> list[torch.Tensor]:
    """Returns the buffers that are no packed tensors."""
    return [
        buffer
        for layer in module.modules()
        for name, buffer in layer.named_buffers(recurse=False)
        if not (isinstance(layer, QuantizedLayer) and name in layer.packed_names)
    ]


def _decibels(signal: torch.Tensor, error: torch.Tensor) -> float:
    power, lost = float(signal.sum()), float(error.sum())
    return math.inf if lost == 0 else 10 * math.log10(power / lost)
