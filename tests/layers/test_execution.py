"""Integer execution equals the definition: whole sums of codes and levels, scaled afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from vqdq import activations, codecs
from vqdq.activations.base import Code, Grid, Site, quantize, ranged
from vqdq.kernels import int8_products
from vqdq.kernels.int8 import Lines
from vqdq.layers import execution, integer_groups
from vqdq.layers.execution import executions, how
from vqdq.layers.inputs import LayerInput, NoiseLevel
from vqdq.layers.matrix import from_matrix, weight_matrix
from vqdq.layers.quantized import QuantizedConv2d, QuantizedLinear, pack

QUICK = settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])


def no_step(*_: object) -> None:
    """Takes the place of `execution.step`: every layer is simulated."""


AXES = ("tensor", "sample", "row", "rows", "group")
SEEDS = st.integers(0, 2**31)
ROUNDING = 1e-6  # of float32, relative to the sum of |products|


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Known:
    """A calibrated quantizer whose grid is given."""

    known: Grid
    block: int = 0
    calibrated: bool = True
    smooths: bool = False

    @property
    def bits(self) -> int:
        return self.known.bits

    @property
    def code(self) -> Code:
        return self.known.code

    def rotation_block(self, _site: Site) -> int:
        return self.block

    def own_axis(self, _site: Site) -> None:
        return None

    def layout(self, _site: Site) -> tuple[()]:
        return ()

    def grid(self, *_: object) -> Grid:
        return self.known


def quantized(
    layer: nn.Linear | nn.Conv2d,
    quantizer: object,
    codec: str = "uniform",
    bits: int = 7,
    stored: dict[str, torch.Tensor] | None = None,
) -> QuantizedLinear | QuantizedConv2d:
    matrix, taps = weight_matrix(layer)
    settings = {"bits": bits} | ({"state_bits": 8} if codec == "trellis" else {})
    params = codecs.get(codec).settings.from_json(settings, where=codec)
    packed = pack(layer, codecs.create(codec, params).encode(matrix, taps=taps))
    channels = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    site = Site(channels=channels, taps=taps)
    given_input = LayerInput(quantizer, site, NoiseLevel(), where="the layer")  # pyright: ignore[reportArgumentType]
    packed.quantize_input_(given_input, stored or {})
    return packed


def some_grid(
    axis: str, sizes: tuple[int, int, int], bits: int, generator: torch.Generator, zeros: bool
) -> Grid:
    """Returns random ranges; without `zeros` some ranges do not hold 0."""
    batch, positions, channels = sizes
    groups = min(channels, 3)
    shape = {
        "tensor": (),
        "sample": (batch,),
        "row": (batch, positions),
        "rows": (positions,),
        "group": (groups,),
        "channel": (channels,),
    }[axis]
    low = torch.randn(shape, generator=generator) - (1.5 if zeros else 0.5)
    high = low + 0.5 + torch.rand(shape, generator=generator) * 4
    scale, zero = ranged(low, high, bits, with_zero=zeros)
    index = torch.randint(0, groups, (channels,), generator=generator) if axis == "group" else None
    return Grid(bits=bits, axis=axis.rstrip("s"), scale=scale, zero=zero, index=index)  # pyright: ignore[reportArgumentType]


def parts(layer: QuantizedLinear | QuantizedConv2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns levels (int64, in the layer's layout) and scales of the 8-bit weight."""
    assert layer.input is not None
    stored = execution.Weight8(layer, layer.input.quantizer.rotation_block(layer.input.site))
    eight = stored.stored(layer)
    return from_matrix(eight.levels.long(), layer), eight.scales


def exact(
    layer: QuantizedLinear | QuantizedConv2d, rows: torch.Tensor, grid: Grid
) -> list[torch.Tensor]:
    """Returns the output and Σ |products| in float64 from whole codes of [batch, positions, C]."""
    levels, scales = parts(layer)
    scale, zero = (part.double() for part in grid.wide())
    codes = quantize(rows, grid).double()
    bias = torch.zeros(len(levels)) if layer.bias is None else layer.bias.detach()
    out: list[torch.Tensor] = []
    for values, weight, added in (
        ((codes - zero) * scale, levels.double(), bias.double()),
        ((codes + zero.abs()) * scale, levels.double().abs(), bias.double().abs()),
    ):
        wide = values.expand(rows.shape)
        out.append(functional.linear(wide, weight * scales.double()[:, None], added))
    return out


@QUICK
@given(
    axis=st.sampled_from(AXES),
    batch=st.integers(1, 3),
    positions=st.integers(1, 40),
    inputs=st.integers(1, 90),
    outputs=st.integers(1, 70),
    bits=st.integers(4, 8),
    zeros=st.booleans(),
    biased=st.booleans(),
    large=st.booleans(),
    seed=SEEDS,
)
def test_linear_in_integers_equals_the_definition(
    axis: str,
    batch: int,
    positions: int,
    inputs: int,
    outputs: int,
    bits: int,
    zeros: bool,
    biased: bool,
    large: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(inputs, outputs, bias=biased)
    rows = torch.randn(batch, positions, inputs, generator=generator) * 2
    grid = some_grid(axis, (batch, positions, inputs), bits, generator, zeros)
    packed = quantized(layer, Known(grid))
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        if large:
            patch.setattr(integer_groups, "MOST_STACKED", 0)
        found = packed(rows)
    assert packed.input is not None
    assert how(packed, packed.input).kind == "integer"
    wanted, size = exact(packed, rows, grid)
    assert ((found.double() - wanted).abs() <= ROUNDING * size).all()


@pytest.mark.parametrize("codec", ["trellis", "uniform"])
@pytest.mark.parametrize("name", ["dynamic", "rotated", "minmax"])
def test_quantizers_of_the_registry_run_in_integers(codec: str, name: str) -> None:
    """Both ways of one layer: the second is the definition in float32."""
    generator = torch.Generator().manual_seed(5)
    for layer, shape in (
        (nn.Linear(64, 48), (2, 9, 64)),
        (nn.Linear(64, 48), (2, 64)),
        (nn.Conv2d(64, 32, 3, padding=1), (2, 64, 7, 5)),
        (nn.Conv2d(64, 32, 1), (2, 64, 7, 5)),
    ):
        quantizer = activations.create(name, bits=8)
        inputs = torch.randn(shape, generator=generator)
        stored = {
            "input_timesteps": torch.linspace(999, 0, 8),
            "input_low": inputs.min().repeat(8),
            "input_high": inputs.max().repeat(8),
        }
        packed = quantized(layer, quantizer, codec, 3, stored)
        given_input = packed.input
        assert given_input is not None
        told = how(packed, given_input)
        turned = given_input.weight(packed).block > 0
        own = codec == "uniform" or packed.packed.shape.taps == 1
        assert told.kind == "integer"
        assert told.exact == (own and turned == (codec == "trellis"))
        with torch.no_grad():
            found = packed(inputs)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(execution, "step", no_step)
                given_input.release()
                known = packed(inputs)
        assert torch.allclose(found, known, rtol=1e-5, atol=1e-5 * float(known.abs().max()))


def test_channels_are_simulated_and_say_why() -> None:
    generator = torch.Generator().manual_seed(6)
    grid = some_grid("channel", (2, 9, 33), 8, generator, True)
    model = nn.Sequential(quantized(nn.Linear(33, 20), Known(grid)), nn.Linear(20, 3))
    told = executions(model)
    assert list(told) == ["0"]
    assert told["0"].kind == "simulated"
    assert "one for each channel" in told["0"].reason
    layer = model[0]
    assert isinstance(layer, QuantizedLinear)
    rows = torch.randn(2, 9, 33, generator=generator)
    with torch.no_grad():
        found = layer(rows)
    wanted, size = exact(layer, rows, grid)
    assert ((found.double() - wanted).abs() <= ROUNDING * size).all()
    assert layer.input is not None
    layer.input.enabled = False
    assert executions(model)["0"].kind == "16-bit"


def test_a_float_weight_is_held_only_while_it_is_needed() -> None:
    layer = quantized(nn.Linear(64, 50), activations.create("dynamic"))
    rows = torch.randn(1, 3, 64)
    assert layer.input is not None
    with torch.no_grad():
        found = layer(rows)
        held = layer.input.weight(layer).num_bytes
        assert held == 64 * 50 + 2 * 4 * 50  # levels, column sums, scales
        layer.input.enabled = False
        known = layer(rows)
        assert layer._dense is not None  # pyright: ignore[reportPrivateUsage]
        layer.input.enabled = True
        assert torch.equal(layer(rows), found)
        assert layer._dense is None  # pyright: ignore[reportPrivateUsage]
        assert layer.weight.shape == (50, 64)
        assert layer._dense is None  # pyright: ignore[reportPrivateUsage]
    assert float((known - found).norm() / known.norm()) < 0.01


def test_forms_of_a_weight_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups that change with the noise level pack the levels anew, and forget the oldest."""
    generator = torch.Generator().manual_seed(10)
    rows = torch.randn(1, 4, 30, generator=generator)
    layer = quantized(nn.Linear(30, 20), activations.create("dynamic"))
    assert layer.input is not None
    weight = layer.input.weight(layer)
    monkeypatch.setattr(integer_groups, "MOST_STACKED", 0)
    sizes: set[int] = set()
    for _ in range(5):
        grid = some_grid("group", (1, 4, 30), 8, generator, True)
        step = execution.step(layer, weight, "group", grid, 8)
        assert step is not None
        found, finite = step(Lines(values=rows))
        assert finite
        wanted, size = exact(layer, rows, grid)
        assert ((found.double() - wanted).abs() <= ROUNDING * size).all()
        sizes.add(weight.num_bytes)
    one = 30 * 20 + 4 * (3 * 20 + 20) + 8 * 30  # levels; sums of 3 groups, scales; the order
    assert max(sizes) <= execution.KEPT_FORMS * one


def test_every_case_against_whole_numbers_of_numpy() -> None:
    generator = torch.Generator().manual_seed(7)
    rows = torch.randn(2, 5, 12, generator=generator)
    layer = nn.Linear(12, 7)
    for axis in AXES:
        grid = some_grid(axis, (2, 5, 12), 8, generator, True)
        packed = quantized(layer, Known(grid))
        levels, scales = (part.numpy() for part in parts(packed))
        scale, zero = (part.expand(2, 5, 12).numpy() for part in grid.wide())
        codes = np.rint(rows.numpy() * (np.float32(1) / scale)) + zero
        codes = np.clip(codes, 0, 255).astype(np.int64)
        wanted = np.zeros((2, 5, 7))
        for channel in range(12):  # one scale a channel serves every axis
            sums = np.multiply.outer(
                codes[..., channel] - zero[..., channel].astype(np.int64), levels[:, channel]
            )
            wanted += sums * scale[..., channel, None].astype(np.float64)
        wanted = wanted * scales.astype(np.float64) + layer.bias.detach().numpy()
        with torch.no_grad():
            assert np.allclose(packed(rows).numpy(), wanted, rtol=1e-5, atol=1e-5)


def test_threads_change_nothing() -> None:
    generator = torch.Generator().manual_seed(8)
    maps = torch.randn(2, 48, 24, 24, generator=generator)
    packed = quantized(nn.Conv2d(48, 40, 3, padding=1), activations.create("dynamic", bits=8))
    pixels = quantized(
        nn.Conv2d(48, 40, 3, padding=1), activations.create("dynamic", bits=8, pixels=True)
    )
    with torch.no_grad():
        one = packed(maps), pixels(maps)
        torch.set_num_threads(5)
        assert torch.equal(packed(maps), one[0])
        assert torch.equal(pixels(maps), one[1])


def test_where_onednn_overflows_torch_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(9)
    maps = torch.randn(2, 8, 7, 6, generator=generator)
    rows = torch.randn(2, 9, 8, generator=generator)
    quantizer = activations.create("dynamic", bits=8)
    conv, linear = (
        quantized(nn.Conv2d(8, 5, 3, 2, 1), quantizer),
        quantized(nn.Linear(8, 5), quantizer),
    )
    with torch.no_grad():
        known = conv(maps), linear(rows)
        monkeypatch.setattr(int8_products, "support", lambda: ("torch", "for this test"))
        for layer in (conv, linear):
            layer.release()
        assert torch.allclose(conv(maps), known[0], atol=1e-5)
        assert torch.allclose(linear(rows), known[1], atol=1e-5)
        monkeypatch.setattr(int8_products, "support", lambda: ("", "nothing is exact"))
        for layer in (conv, linear):
            layer.release()
            assert layer.input is not None
            assert how(layer, layer.input).reason == "nothing is exact"
        assert torch.allclose(conv(maps), known[0], atol=1e-5)
        assert torch.allclose(linear(rows), known[1], atol=1e-5)


def test_autocast_changes_neither_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(2, 6, 32, generator=generator)
    dense = nn.Linear(32, 24)
    matrix, _ = weight_matrix(dense)
    layer = pack(dense, codecs.create("int8").encode(matrix))
    site = Site(channels=32, positions=6)
    given_input = LayerInput(activations.create("dynamic"), site, NoiseLevel(), where="layer")
    layer.quantize_input_(given_input, {})
    with torch.no_grad():
        for simulated in (False, True):
            if simulated:
                monkeypatch.setattr(execution, "step", no_step)
                given_input.release()
            plain = layer(inputs)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert torch.equal(layer(inputs), plain), simulated
