"""Distribution-aware groups: the axis, the groups and the gain, where all three are known."""

from __future__ import annotations

import pytest
import torch

from tests.activations.made import decibels, noise, power, ranges_of, rounding_error
from vqdq import activations
from vqdq.activations.base import InputRanges, Site, fake_quantize
from vqdq.activations.dgq import CHANNELS, POSITIONS, Extremes

POSITIONS_, WIDTH, TIMES = 64, 48, [900.0, 500.0, 100.0]
SITE = Site(channels=WIDTH, positions=POSITIONS_)
OUTLIERS = 12.0  # times as large as the others
METHODS: tuple[tuple[str, dict[str, object]], ...] = (("minmax", {}), ("dgq", {"groups": 2}))


def planted(axis: int, places: list[int], steps: int = 3) -> torch.Tensor:
    """Uniform inputs [steps, 8, positions, channels], larger in some channels or positions."""
    inputs = noise(steps, 8, POSITIONS_, WIDTH)
    if axis == CHANNELS:
        inputs[..., places] *= OUTLIERS
    else:
        inputs[:, :, places] *= OUTLIERS
    return inputs


def dgq(inputs: torch.Tensor, **settings: object) -> tuple[object, dict[str, torch.Tensor]]:
    quantizer = activations.create("dgq", **{"levels": 3, **settings})
    return quantizer, quantizer.calibrate(ranges_of(inputs, TIMES[: len(inputs)]), SITE)


def error(name: str, inputs: torch.Tensor, timestep: float = 500.0, **settings: object) -> float:
    quantizer = activations.create(name, **{"levels": 3, **settings})
    stored = quantizer.calibrate(ranges_of(inputs, TIMES), SITE)
    rows = inputs[TIMES.index(timestep)]
    grid = quantizer.grid(rows, stored, SITE, timestep)
    return power(fake_quantize(rows, grid) - rows)


@pytest.mark.parametrize("axis", [CHANNELS, POSITIONS])
@pytest.mark.parametrize("regroup", [False, True])
def test_outliers_are_found_on_their_axis_and_kept_to_themselves(axis: int, regroup: bool) -> None:
    places = [3, 17, 40]
    inputs = planted(axis, places)
    quantizer, stored = dgq(inputs, groups=2, regroup=regroup)
    assert set(stored["axis"].tolist()) == {axis}
    grid = quantizer.grid(inputs[0], stored, SITE, 500.0)
    assert grid.axis == ("group" if axis == CHANNELS else "row")
    wide = grid.scale[grid.index] if grid.index is not None else grid.scale
    assert sorted(wide.argsort(descending=True)[:3].tolist()) == places
    assert len(wide.unique()) == 2


@pytest.mark.parametrize("bits", [6, 7, 8])
@pytest.mark.parametrize("axis", [CHANNELS, POSITIONS])
def test_the_gain_over_one_range_is_the_predicted_one(axis: int, bits: int) -> None:
    """Errors follow from the steps alone: one step for all, or one for each of two groups."""
    places = list(range(6))
    inputs = planted(axis, places)
    share = len(places) / (WIDTH if axis == CHANNELS else POSITIONS_)
    fine, coarse = 2 / (2**bits - 1), 2 * OUTLIERS / (2**bits - 1)
    outliers = share * rounding_error(OUTLIERS, coarse)
    whole = outliers + (1 - share) * rounding_error(1, coarse)
    groups = outliers + (1 - share) * rounding_error(1, fine)
    one, two = (error(name, inputs, bits=bits, **more) for name, more in METHODS)
    assert one == pytest.approx(whole, rel=0.03)
    assert two == pytest.approx(groups, rel=0.06)
    assert decibels(one / two) == pytest.approx(decibels(whole / groups), abs=0.2)


def test_one_group_is_the_range_of_the_tensor() -> None:
    inputs = planted(CHANNELS, [1])
    for timestep in (900.0, 500.0):
        one = error("dgq", inputs, timestep, groups=1)
        assert one == error("minmax", inputs, timestep)


def test_more_groups_never_hurt_what_they_were_made_from() -> None:
    scales = torch.logspace(-1, 1, WIDTH)
    inputs = noise(3, 2, POSITIONS_, WIDTH) * scales
    errors = [error("dgq", inputs, groups=groups, bits=6) for groups in (1, 2, 4, 8, 16)]
    assert errors == sorted(errors, reverse=True)
    assert decibels(errors[0] / errors[3]) > 8


def test_the_spread_is_the_published_one() -> None:
    side = Extremes(low=torch.tensor([[-3.0, -1.0]]), high=torch.tensor([[2.0, 5.0]]))
    assert side.spread() == pytest.approx(((5 - 2) + (-1 + 3)) / (5 + 3))


def test_a_group_covers_its_members_and_an_empty_one_everything() -> None:
    side = Extremes(low=torch.tensor([[-3.0, -1.0, -2.0]]), high=torch.tensor([[2.0, 5.0, 1.0]]))
    ranges = side.of_groups(torch.tensor([0, 1, 0]), 3)
    assert ranges.low.tolist() == [[-3.0, -1.0, -3.0]]
    assert ranges.high.tolist() == [[2.0, 5.0, 5.0]]


def test_as_published_the_range_need_not_hold_zero() -> None:
    inputs = noise(3, 2, POSITIONS_, WIDTH) * 0.5 + 4.0  # 3.5 … 4.5
    quantizer, stored = dgq(inputs, paper_exact=True, groups=1, bits=4)
    grid = quantizer.grid(inputs[0], stored, SITE, 900.0)
    assert float(grid.scale) == pytest.approx(1 / 15, rel=1e-2)
    assert error("dgq", inputs, bits=4, groups=1) > 10 * error(
        "dgq", inputs, bits=4, groups=1, paper_exact=True
    )


def test_as_published_each_level_has_groups_of_its_own_and_the_nearest_counts() -> None:
    inputs = torch.cat((planted(CHANNELS, [5], 1), planted(POSITIONS, [9], 1)))
    quantizer, stored = dgq(inputs, paper_exact=True, groups=2, levels=2)
    assert stored["axis"].tolist() == [CHANNELS, POSITIONS]
    for timestep, axis in ((1000.0, "group"), (701.0, "group"), (699.0, "row"), (0.0, "row")):
        assert quantizer.grid(inputs[0], stored, SITE, timestep).axis == axis
    grid = quantizer.grid(inputs[0], stored, SITE, None)  # what covers both levels
    assert grid.axis == "tensor"
    assert float(grid.scale) * 255 == pytest.approx(2 * OUTLIERS, rel=0.02)


def test_positions_that_are_not_known_are_never_grouped() -> None:
    inputs = planted(POSITIONS, [9])
    quantizer = activations.create("dgq", groups=2, levels=3)
    site = Site(channels=WIDTH)
    found = ranges_of(inputs, TIMES)
    assert int(quantizer.calibrate(found, site)["axis"]) == CHANNELS
    none = torch.zeros(3, 0)
    without = InputRanges(
        timesteps=found.timesteps,
        channel_low=found.channel_low,
        channel_high=found.channel_high,
        position_low=none,
        position_high=none,
    )
    assert int(quantizer.calibrate(without, SITE)["axis"]) == CHANNELS


def test_another_resolution_takes_the_groups_of_the_map() -> None:
    """An outlier in the map's upper left corner is a quarter as many pixels at half the size."""
    corner = [8 * row + column for row in range(2) for column in range(2)]
    quantizer, stored = dgq(planted(POSITIONS, corner), groups=2)
    grid = quantizer.grid(torch.zeros(1, 16, WIDTH), stored, SITE, 500.0, (4, 4))
    assert grid.scale.argmax() == 0
    assert int((grid.scale == grid.scale.max()).sum()) == 1
    grid = quantizer.grid(torch.zeros(1, 256, WIDTH), stored, SITE, 500.0)
    large = (grid.scale == grid.scale.max()).reshape(16, 16)
    assert bool(large[:4, :4].all())
    assert int(large.sum()) == 16


def test_one_position_has_one_range() -> None:
    site = Site(channels=WIDTH, positions=1)
    quantizer = activations.create("dgq", levels=3)
    stored = quantizer.calibrate(ranges_of(noise(3, 2, 1, WIDTH), TIMES), site)
    assert set(stored) == {"timesteps", "low", "high"}
    assert quantizer.grid(torch.zeros(1, 1, WIDTH), stored, site, 500.0).axis == "tensor"
