"""What a codec loses of a layer's weight at each setting, measured on a sample of the weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from vqdq.codecs import rotation
from vqdq.codecs.base import Codec, InputStats
from vqdq.codecs.feedback import factor
from vqdq.errors import UserError
from vqdq.layers.matrix import weight_matrix
from vqdq.params import ParamInfo, Params, describe
from vqdq.recipe import PlannedLayer

_RATES = ("bits", "num_codebooks")  # what a method may call its rate
_ROWS, _COLUMNS = 256, 128  # of the sample: 32 768 weights tell a relative error to 1 %
_TAP_COLUMNS = 32  # of each tap: taps differ in size, and a row has one scale for all


def rate_setting(settings: type[Params]) -> ParamInfo | None:
    """Returns the setting that decides a method's size, or None when it has a single size."""
    return next((info for info in describe(settings) if info.name in _RATES), None)


def rates(setting: ParamInfo) -> tuple[int, ...]:
    """Returns the values that a rate setting allows, ascending."""
    if setting.choices:
        return tuple(sorted(int(choice) for choice in setting.choices))
    if setting.low is None or setting.high is None:
        return (int(setting.default),)
    return tuple(range(int(setting.low), int(setting.high) + 1))


def relative_error(layer: nn.Module, codec: Codec[Any], shares: Sequence[float] = ()) -> float:
    """Returns ‖W − Ŵ‖² / ‖W‖² of a codec, data-free, on a sample of a layer.

    The sample has at most 256 rows, spread evenly, and 128 columns: the first channels, of every
    tap alike (32 at least). A codec that cannot take such a part encodes the whole weight.

    Args:
        shares: weight of each row's own relative error in the result, [out]; empty weighs rows by
            their energy.
    """
    matrix, taps = weight_matrix(layer)
    matrix = matrix.float().cpu()
    channels = matrix.shape[1] // taps
    rows = torch.linspace(0, len(matrix) - 1, min(len(matrix), _ROWS)).round().long()
    width = min(channels, max(_TAP_COLUMNS, _COLUMNS // taps))
    part = matrix[rows].reshape(len(rows), taps, channels)[:, :, :width].reshape(len(rows), -1)
    weights = torch.tensor(shares, dtype=torch.float64) if shares else None
    try:
        return _loss(part, taps, codec, None if weights is None else weights[rows])
    except UserError:
        return _loss(matrix, taps, codec, weights)


def feedback_gains(
    stats: Mapping[str, InputStats], layers: tuple[PlannedLayer, ...], *, seed: int = 0
) -> dict[str, float]:
    """Returns the share of its loss that error feedback leaves each layer, where it applies.

    mean(R_jj²) / mean(H_jj) in the basis in which the codec rounds; see `codecs.feedback`. Layers
    that share one Hessian and one rotation are factorised once.
    """
    from vqdq.codecs import get

    found: dict[str, float] = {}
    known: dict[tuple[int, int], float] = {}
    for planned in layers:
        name = planned.layer.name
        of_layer = stats.get(name)
        if of_layer is None or of_layer.hessian is None or planned.method is None:
            continue
        if not get(planned.method).uses_hessian:
            continue
        hessian = of_layer.hessian
        block = rotation.block_size(
            planned.layer.shape, int(getattr(planned.params, "rotation", 0))
        )
        key = (id(hessian), block)
        if key not in known:
            signs = rotation.random_signs(len(hessian), torch.Generator().manual_seed(seed))
            rotated = rotation.rotate_hessian(hessian, signs, block)
            known[key] = min(1.0, factor(rotated, of_layer.damping).predicted_gain)
        found[name] = known[key]
    return found


def _loss(matrix: torch.Tensor, taps: int, codec: Codec[Any], shares: torch.Tensor | None) -> float:
    power = matrix.double().square().sum(dim=1)  # [rows]
    stats = InputStats(hessian=torch.eye(matrix.shape[1])) if codec.needs_hessian else None
    decoded = codec.encode(matrix, taps=taps, stats=stats).decode()
    lost = (matrix.double() - decoded.double()).square().sum(dim=1)
    weights = power if shares is None or float(shares.sum()) == 0 else shares
    if float(weights.sum()) == 0:
        return 0.0
    relative = torch.where(power > 0, lost / power.clamp(min=1e-300), 0.0)
    return float((weights * relative).sum() / weights.sum())
