"""What every registered activation quantizer promises, at any site."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from tests.activations.made import noise, ranges_of
from vqdq import activations
from vqdq.activations.base import (
    ActivationQuantizer,
    Grid,
    Site,
    dequantize,
    fake_quantize,
    finite,
    quantize,
)
from vqdq.errors import UserError
from vqdq.params import describe
from vqdq.tensors import TensorSpec

TIMES = [981.0, 700.0, 401.0, 100.0, 1.0]
SITES = (
    Site(channels=48, positions=64),
    Site(channels=33, positions=77),
    Site(channels=320, positions=16, taps=9),
    Site(channels=4, positions=256, taps=9),
    Site(channels=130, positions=1),
    Site(channels=1, positions=9),
    Site(channels=64),
)
SHAPES = {"tensor": (), "sample": (2,), "channel": ("channels",), "group": None, "row": None}


def variants(name: str) -> list[dict[str, object]]:
    """The defaults, and every value of each setting on its own."""
    found: list[dict[str, object]] = [{}]
    for info in describe(activations.get(name).settings):
        values = info.choices or ((False, True) if info.kind is bool else (info.low, info.high))
        if info.name == "levels":
            values = (1, 3, 5, 12)
        if info.name == "bits":
            values = info.choices or (4, 6, 8)
        found += [{info.name: value} for value in values]
    return found


VARIANTS = [(name, values) for name in activations.names() for values in variants(name)]
CALIBRATED = [
    (name, values) for name, values in VARIANTS if activations.create(name, **values).calibrated
]
MIDDLE = Site(channels=48, positions=64)


def inputs_at(site: Site, batch: int = 2) -> torch.Tensor:
    """Uneven inputs [steps, batch, positions, channels]: larger at low noise, lopsided channels."""
    positions = site.positions or 25
    rows = noise(len(TIMES), batch, positions, site.channels)
    growing = torch.linspace(1, 3, len(TIMES)).reshape(-1, 1, 1, 1)
    lopsided = torch.linspace(0.2, 4, site.channels)
    return (rows + 0.3 * lopsided) * lopsided * growing


def shape_of(site: Site) -> tuple[int, int] | None:
    side = round((site.positions or 25) ** 0.5)
    return (side, side) if site.taps > 1 else None


def prepared(
    name: str, values: dict[str, object], site: Site = MIDDLE
) -> tuple[ActivationQuantizer[object], dict[str, torch.Tensor], torch.Tensor]:
    quantizer, inputs = activations.create(name, **values), inputs_at(site)
    return quantizer, quantizer.calibrate(ranges_of(inputs, TIMES), site), inputs


def wide(grid: Grid, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale, zero = grid.wide()
    return scale.expand(rows.shape), zero.expand(rows.shape)


def reach(grid: Grid, rows: torch.Tensor) -> torch.Tensor:
    """The most that a covered value may be off: a step of integers, half a step of 8-bit floats."""
    scale, _ = wide(grid, rows)
    if grid.code == "integer":
        return 1.001 * scale
    return 1.001 * torch.maximum(rows.abs() * 2**-4, scale * 2**-10)


@pytest.mark.parametrize(("name", "values"), VARIANTS)
def test_what_is_stored_is_what_was_promised(name: str, values: dict[str, object]) -> None:
    for site in SITES:
        quantizer, stored, _ = prepared(name, values, site)
        measured = {TensorSpec.of(key, tensor) for key, tensor in stored.items()}
        assert measured == set(quantizer.layout(site))
        assert bool(stored) == quantizer.calibrated


@pytest.mark.parametrize(("name", "values"), VARIANTS)
def test_every_site_has_a_grid(name: str, values: dict[str, object]) -> None:
    """Its shape is that of its axis, codes fit, and what lies in the range is half a step away."""
    for site, timestep in itertools.product(SITES, (981.0, 550.0, 1.0, None)):
        quantizer, stored, inputs = prepared(name, values, site)
        rows = inputs[2]
        grid = quantizer.grid(rows, stored, site, timestep, shape_of(site))
        assert grid.bits == quantizer.bits == values.get("bits", 8)
        assert grid.scale.shape == grid.zero.shape
        assert grid.scale.dtype == grid.zero.dtype == torch.float32
        if grid.axis == "group":
            assert grid.index is not None
            assert grid.index.shape == (site.channels,)
            assert 0 <= int(grid.index.min()) <= int(grid.index.max()) < len(grid.scale)
        elif grid.axis == "row":
            assert grid.scale.shape in ((rows.shape[1],), tuple(rows.shape[:2]))
        else:
            sizes = {"tensor": (), "sample": (len(rows),), "channel": (site.channels,)}
            assert grid.scale.shape == sizes[grid.axis]
        assert bool((grid.scale > 0).all())
        assert torch.equal(grid.zero, grid.zero.round())
        codes = quantize(rows, grid)
        scale, zero = wide(grid, rows)
        assert grid.code == quantizer.code
        if grid.code == "fp8":
            assert torch.equal(codes, codes.to(torch.float8_e4m3fn).float())
            assert not zero.any()
            assert bool(((dequantize(codes, grid) - rows).abs() <= reach(grid, rows)).all())
            continue
        assert torch.equal(codes, codes.round())
        assert 0 <= float(codes.min()) <= float(codes.max()) <= 2**grid.bits - 1
        low, high = -zero * scale, (2**grid.bits - 1 - zero) * scale
        inside = (rows >= low) & (rows <= high)
        error = (dequantize(codes, grid) - rows).abs()
        assert bool((error <= scale * 0.5001 + 1e-5 * rows.abs())[inside].all())


@pytest.mark.parametrize(("name", "values"), VARIANTS)
def test_what_was_calibrated_is_covered_at_its_own_noise_level(
    name: str, values: dict[str, object]
) -> None:
    """Within one step: the end of a range moves by up to half a step when zero becomes a code."""
    quantizer, stored, inputs = prepared(
        name, {**values, "levels": 5} if "levels" in fields(name) else values
    )
    for timestep, rows in zip(TIMES, inputs, strict=True):
        grid = quantizer.grid(rows, stored, MIDDLE, timestep)
        assert bool(((fake_quantize(rows, grid) - rows).abs() <= reach(grid, rows)).all())
    rows, grid = inputs[-1], quantizer.grid(inputs[-1], stored, MIDDLE, None)
    assert bool(((fake_quantize(rows, grid) - rows).abs() <= reach(grid, rows)).all())


def fields(name: str) -> set[str]:
    return {info.name for info in describe(activations.get(name).settings)}


@pytest.mark.parametrize(("name", "values"), VARIANTS)
def test_neighbours_in_the_batch_change_nothing(name: str, values: dict[str, object]) -> None:
    for site in SITES[:3]:
        quantizer, stored, inputs = prepared(name, values, site)
        rows, shape = inputs[1], shape_of(site)
        both = fake_quantize(rows, quantizer.grid(rows, stored, site, 700.0, shape))
        alone = rows[:1]
        assert torch.equal(
            both[:1], fake_quantize(alone, quantizer.grid(alone, stored, site, 700.0, shape))
        )


@pytest.mark.parametrize(("name", "values"), VARIANTS)
def test_strided_rows_are_rows(name: str, values: dict[str, object]) -> None:
    quantizer, stored, inputs = prepared(name, values)
    rows = inputs[1]
    strided = rows.transpose(1, 2).contiguous().transpose(1, 2)
    found, expected = (quantizer.grid(item, stored, MIDDLE, 700.0) for item in (strided, rows))
    assert torch.equal(found.scale, expected.scale)
    assert torch.equal(quantize(strided, found), quantize(rows, expected))


@pytest.mark.parametrize(("name", "values"), CALIBRATED)
def test_calibrated_grids_look_only_at_the_shape(name: str, values: dict[str, object]) -> None:
    quantizer, stored, inputs = prepared(name, values)
    first = quantizer.grid(inputs[0], stored, MIDDLE, 700.0)
    second = quantizer.grid(torch.full_like(inputs[0], float("nan")), stored, MIDDLE, 700.0)
    assert torch.equal(first.scale, second.scale)
    assert torch.equal(first.zero, second.zero)


@pytest.mark.parametrize(("name", "values"), CALIBRATED)
def test_scales_follow_the_noise_level(name: str, values: dict[str, object]) -> None:
    """Exact at the levels kept, between its neighbours elsewhere, constant beyond the ends."""
    quantizer, stored, inputs = prepared(name, {**values, "levels": 5})

    def scale(timestep: float) -> torch.Tensor:
        return wide(quantizer.grid(inputs[0], stored, MIDDLE, timestep), inputs[0])[0]

    assert torch.equal(stored["timesteps"], torch.tensor(TIMES))
    assert torch.equal(scale(2000.0), scale(981.0))
    assert torch.equal(scale(-5.0), scale(1.0))
    for before, after in itertools.pairwise(TIMES):
        ends = torch.stack((scale(before), scale(after)))
        for share in (0.2, 0.5, 0.9):
            between = scale(before + share * (after - before))
            assert bool((between >= ends.amin(0) * (1 - 1e-6)).all())
            assert bool((between <= ends.amax(0) * (1 + 1e-6)).all())
    assert bool((scale(1.0) > 1.5 * scale(981.0)).float().mean() > 0.9)


@pytest.mark.parametrize(("name", "values"), VARIANTS)
@pytest.mark.parametrize("shape", [(4, 4), (16, 16), (6, 10), (1, 1)])
def test_other_resolutions_work(
    name: str, values: dict[str, object], shape: tuple[int, int]
) -> None:
    for taps in (1, 9):
        site = replace(MIDDLE, taps=taps)
        quantizer, stored, _ = prepared(name, values, site)
        rows = noise(2, shape[0] * shape[1], 48)
        given = shape if taps > 1 else None
        known = fake_quantize(rows, quantizer.grid(rows, stored, site, 700.0, given))
        assert known.shape == rows.shape
        assert bool(torch.isfinite(known).all())


@pytest.mark.parametrize(("name", "values"), VARIANTS)
def test_constant_inputs_survive(name: str, values: dict[str, object]) -> None:
    for constant in (0.0, 3.5, -2.0):
        inputs = torch.full((2, 1, 64, 48), constant)
        quantizer = activations.create(name, **values)
        stored = quantizer.calibrate(ranges_of(inputs), MIDDLE)
        known = fake_quantize(inputs[0], quantizer.grid(inputs[0], stored, MIDDLE, 500.0))
        assert known == pytest.approx(inputs[0], rel=1e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_damaged_ranges_name_the_layer(bad: float) -> None:
    ranges = ranges_of(inputs_at(MIDDLE), TIMES)
    assert finite(ranges, "mid.attn") is ranges
    ranges.position_high[2, 5] = bad
    with pytest.raises(UserError, match="NaN or infinite") as fault:
        finite(ranges, "mid.attn")
    assert fault.value.where == "mid.attn"
    with pytest.raises(UserError, match="never run"):
        finite(replace(ranges, timesteps=torch.empty(0)), "mid.attn")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["dynamic", "fp8", "rotated", "smooth"])
def test_damaged_inputs_show_in_their_own_range(name: str, bad: float) -> None:
    """And only there: other tokens and other pictures keep theirs."""
    rows = noise(2, 64, 48)
    rows[1, 7, 3] = bad
    quantizer = activations.create(name)
    for taps in (1, 9):
        grid = quantizer.grid(rows, {}, replace(MIDDLE, taps=taps), None)
        damaged = ~torch.isfinite(grid.scale)
        rows_apart = taps == 1 or name == "fp8"
        assert damaged.nonzero().tolist() == ([[1, 7]] if rows_apart else [[1]])


@pytest.mark.parametrize("name", activations.names())
def test_every_quantizer_explains_itself(name: str) -> None:
    kind = activations.get(name)
    assert kind.title
    assert kind.summary.endswith(".")
    assert "arXiv" in kind.reference
    infos = {info.name: info for info in describe(kind.settings)}
    assert all(info.label for info in infos.values())
    bits = infos["bits"]
    allowed = bits.choices or (bits.low, bits.high)
    assert allowed == ((8,) if activations.create(name).code == "fp8" else (4, 8))
    for beyond in (3, 9):
        with pytest.raises(UserError, match=r"out of range|not offered"):
            activations.create(name, bits=beyond)


def test_unknown_names_and_settings_name_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown activation method") as fault:
        activations.create("dqg")
    assert "dgq" in fault.value.remedy
    with pytest.raises(UserError, match="unknown setting"):
        activations.create("dgq", group=4)
