"""Which sampler step a denoiser call is, and which half of its batch is which.

A guided pipeline draws the unconditional and the conditional half in one batch, in this order
(diffusers' convention). Steps are counted by the calls of the denoiser; a timestep that rises
starts another pass.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

_NAMES = ("sample", "timestep", "encoder_hidden_states")  # of a U-Net
GUIDED = ("uncond", "cond")
SINGLE = ("all",)


class StepClock:
    """Follows the calls of a denoiser: `step`, the timesteps and the shapes that came in."""

    def __init__(self, *, guided: bool) -> None:
        self.halves = GUIDED if guided else SINGLE
        self.step = -1
        self.timesteps: list[float] = []
        self._last = math.inf
        self.latent_grid: tuple[int, int] | None = None
        self._packed = False  # the latent is a sequence of patches
        self._text: Tensor | None = None
        self._names: tuple[str, ...] = ()

    @property
    def text_length(self) -> int:
        """Tokens of the text that the denoiser was given, 0 without."""
        return 0 if self._text is None else self._text.shape[1]

    def attach(self, denoiser: nn.Module) -> RemovableHandle:
        """Returns the handle of the hook that counts the calls of `denoiser`."""
        names = tuple(inspect.signature(denoiser.forward).parameters)
        self._names = names if "timestep" in names else _NAMES
        return denoiser.register_forward_pre_hook(self._before, with_kwargs=True)

    def _before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        time = _number(given.get("timestep"))
        again = not math.isnan(time) and time > self._last
        self.step = 0 if again else self.step + 1
        self._last = self._last if math.isnan(time) else time
        if self.step == len(self.timesteps):
            self.timesteps.append(time)
        sample = given.get("sample", given.get("hidden_states"))
        if isinstance(sample, Tensor) and sample.ndim == 4:
            self.latent_grid = (int(sample.shape[2]), int(sample.shape[3]))
        places = given.get("img_ids")  # FLUX: place of each patch, [patches, (0, row, column)]
        self._packed = isinstance(places, Tensor)
        if isinstance(places, Tensor):
            row, column = (int(end) for end in places.reshape(-1, 3)[:, 1:].amax(dim=0))
            self.latent_grid = (row + 1, column + 1)
        text = given.get("encoder_hidden_states")
        self._text = text if isinstance(text, Tensor) else None

    def halved(self, x: Tensor) -> Tensor:
        """Returns the halves of a batch, [halves, samples, ...]; see `whole`."""
        return self.whole(x).unflatten(0, (len(self.halves), -1))

    def whole(self, x: Tensor) -> Tensor:
        """Returns a batch that can be cut into halves.

        What has an odd batch belongs to no half alone and is counted in both.
        """
        return torch.cat([x, x]) if len(x) % len(self.halves) else x

    def positions(self, x: Tensor, *, conv: bool) -> tuple[int, ...]:
        """Returns a layer input's positions: (h, w), (tokens,) or () for a single vector."""
        if conv:
            return (int(x.shape[2]), int(x.shape[3]))
        if x.ndim == 2:
            return ()
        tokens = math.prod(x.shape[1:-1])
        text = self._text
        if text is not None and text.data_ptr() == x.data_ptr() and text.shape == x.shape:
            return (tokens,)
        return self.grid(tokens) or (tokens,)

    def grid(self, tokens: int) -> tuple[int, int] | None:
        """Returns (h, w) of that many latent positions, or None when they form no picture."""
        if self.latent_grid is not None:
            height, width = self.latent_grid
            while height * width > tokens and height * width > 1 and not self._packed:
                height, width = (height + 1) // 2, (width + 1) // 2
            return (height, width) if height * width == tokens and tokens > 1 else None
        side = math.isqrt(tokens)
        return (side, side) if side * side == tokens and side > 1 else None


def _number(value: object) -> float:
    if isinstance(value, Tensor):
        return float(value.detach().to(torch.float64).max()) if value.numel() else math.nan
    return float(value) if isinstance(value, int | float) else math.nan
