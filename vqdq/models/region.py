"""A part of the picture that a person marked: weights on the prediction, and errors there."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from vqdq.errors import UserError
from vqdq.models.trajectory import Call, Trajectories, guided, replay


@dataclass(frozen=True, kw_only=True, slots=True)
class Judge:
    """The squared error of a prediction, in the whole picture and in the region.

    Attributes:
        guidance: of the sampler; `weights`: of the places, see `region_weights`; None for all.
    """

    guidance: float
    weights: torch.Tensor | None

    @classmethod
    def of(cls, trajectories: Trajectories, call: Call, mask: torch.Tensor | None) -> Judge:
        """Returns the judge of calls like this one."""
        weights = None if mask is None else region_weights(mask, tuple(call.output.shape))
        return cls(guidance=trajectories.guidance, weights=weights)

    @property
    def areas(self) -> int:
        """2 with a region, else 1."""
        return 1 if self.weights is None else 2

    def energies(self, values: torch.Tensor, call: Call) -> list[float]:
        """Returns the squared norms of a prediction or a difference, one an area."""
        seen = guided(values.detach().to("cpu", torch.float32), call, self.guidance).double()
        squares = seen.square()
        found = [float(squares.sum())]
        if self.weights is not None:
            found.append(float((squares * self.weights).sum()))
        return found

    def error(self, module: nn.Module, call: Call) -> list[float]:
        """Returns the energies of what `module` predicts otherwise than was recorded."""
        output = replay(module, call).detach().to("cpu", torch.float32)
        return self.energies(output - call.output.float().cpu(), call)


def region_weights(mask: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Returns how much of each place of a prediction lies in the region, float32, broadcastable.

    Args:
        mask: of the picture, [h, w], bool or 0 to 1. It may have any size: it is averaged over the
            pixels of each place, so a half-covered place counts half.
        shape: of the prediction: [batch, channels, h, w], or [batch, tokens, channels] of a
            transformer whose tokens are the rows of a grid in the mask's own proportions.

    Raises:
        UserError: a mask that is not two-dimensional, has values outside 0 to 1 or marks nothing;
            tokens that form no such grid.
    """
    if mask.ndim != 2 or not mask.numel():
        raise UserError(
            f"a mask of the shape {list(mask.shape)} is no picture.",
            where="region",
            remedy="Use one value a pixel, [height, width].",
        )
    values = mask.detach().float().cpu()
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise UserError(
            "the mask has values outside 0 to 1.", where="region", remedy="Use 0 and 1."
        )
    side = _grid(shape, mask.shape[0] / mask.shape[1])
    weights = functional.adaptive_avg_pool2d(values[None, None], side)  # [1, 1, h, w]
    if float(weights.max()) == 0:
        raise UserError(
            "nothing is marked.", where="region", remedy="Draw over the part that looks wrong."
        )
    return weights if len(shape) == 4 else weights.reshape(1, -1, 1)


def _grid(shape: tuple[int, ...], proportion: float) -> tuple[int, int]:
    """Returns height and width of the places of a prediction."""
    if len(shape) == 4:
        return shape[2], shape[3]
    if len(shape) == 3:
        height = round(math.sqrt(shape[1] * proportion))
        if height > 0 and shape[1] % height == 0:
            return height, shape[1] // height
    raise UserError(
        f"predictions of the shape {list(shape)} have no places that a mask could mean.",
        where="region",
        remedy="Use a mask of the picture's own proportions.",
    )
