"""SmoothQuant: large channels are divided, and their columns of the weight multiplied.

s_c = max|x_c|^α / max|w_c|^(1−α) (arXiv 2211.10438, section 4): with α = ½ a channel of the input
and its column of the weight end up equally large. Extremes are those of all noise levels. The
factors are divided by their geometric mean, which changes nothing that is quantized with scales of
its own and keeps them within fp16, as which they are stored; channels that are silent, and columns
that are zero, keep the factor 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vqdq.activations import register
from vqdq.activations.base import ActivationQuantizer, InputRanges, Site
from vqdq.activations.rotated import fitting_block
from vqdq.activations.settings import bits_setting, levels_setting, scale_setting
from vqdq.activations.turned import TurnedQuantizer, plain_ranges
from vqdq.params import Params, param

_FAR = 1e4  # factors stay within 1/_FAR … _FAR: fp16 holds them to 11 bits


@dataclass(frozen=True, kw_only=True, slots=True)
class SmoothParams(Params):
    """Settings of smoothing."""

    bits: int = bits_setting()
    alpha: float = param(
        0.5,
        label="Share of the weight",
        help="How much of the input's outliers moves into the weight: 0 nothing, 1 everything.",
        low=0.0,
        high=1.0,
        reference="arXiv 2211.10438, section 4",
    )
    scale: str = scale_setting()
    rotation: int = param(
        0,
        label="Rotation block",
        help="Also rotates the smoothed input, in blocks of at most so many channels; 0 does not.",
        unit="channels",
        choices=(0, 64, 128, 256),
        advanced=True,
    )
    levels: int = levels_setting("Calibrated ranges")


@register
class SmoothQuantizer(TurnedQuantizer[SmoothParams]):
    """Plain ranges of the smoothed input."""

    name = "smooth"
    title = "Smoothed inputs"
    summary = "Outliers move into the weight, channel by channel, and one range will do."
    reference = "SmoothQuant, arXiv 2211.10438, section 4"
    settings = SmoothParams

    @property
    def plain(self) -> ActivationQuantizer[Any]:
        return plain_ranges(self.params.scale, self.params.bits, self.params.levels)

    @property
    def smooths(self) -> bool:
        return True

    def rotation_block(self, site: Site) -> int:
        return fitting_block(site, self.params.rotation)

    def smoothing(self, ranges: InputRanges, weight: torch.Tensor, site: Site) -> torch.Tensor:
        alpha = self.params.alpha
        inputs = torch.maximum(ranges.channel_high.amax(0), -ranges.channel_low.amin(0)).double()
        columns = weight.double().abs().reshape(-1, site.taps, site.channels).amax((0, 1)).cpu()
        heard = (inputs > 0) & (columns > 0)
        logs = alpha * inputs.clamp_min(1e-30).log() - (1 - alpha) * columns.clamp_min(1e-30).log()
        if bool(heard.any()):
            logs = torch.where(heard, logs - logs[heard].mean(), 0.0)
        else:
            logs = torch.zeros_like(logs)
        return logs.exp().clamp(1 / _FAR, _FAR).half().float()
