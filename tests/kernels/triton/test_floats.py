"""8-bit floats on a card: the codes of torch's own cast, and their products with scales."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.kernels.triton.test_codes import KINDS_OF_LINES, some_lines
from tests.kernels.triton.test_decoding import DEVICE
from vqdq import kernels
from vqdq.kernels import fp8
from vqdq.kernels.backend import interpreted
from vqdq.kernels.int8 import Border, Lines
from vqdq.kernels.int8_parts import Reading, reference_product
from vqdq.kernels.triton import support

# Hopper's units keep about 14 bits of a sum.
OFF = 1e-3 if DEVICE == "cuda" else 1e-6


@KINDS_OF_LINES
def test_codes_and_scales_equal_the_reference(
    shape: tuple[int, ...], block: int, divides: bool, dtype: torch.dtype
) -> None:
    """With values far below the largest, which are multiples of 2**-9 steps, and in any strides."""
    lines = some_lines(shape, block, divides, dtype)
    lines.values[..., ::3] *= 1e-3
    twice = torch.stack((lines.values, lines.values), -1)[..., 0]  # every second value in memory
    for values in (lines.values, twice):
        there = replace(lines, values=values).on(torch.device(DEVICE))
        with interpreted():
            codes, scale = fp8.fp8_rows(there)
        wanted, wanted_scale = fp8.reference_rows(lines)
        assert torch.equal(scale.cpu(), wanted_scale)
        assert codes.shape == wanted.shape
        assert torch.equal(codes.cpu().view(torch.uint8), wanted.view(torch.uint8))
    rows = fp8.reference_rows(replace(lines, block=0, signs=torch.empty(0)))[0].float()
    assert rows.flatten(1, -2).abs().amax(2).eq(448).all()


def test_every_float_of_8_bits_and_what_lies_between_is_rounded_as_by_torch() -> None:
    """A row whose largest value is 448 has the scale 1."""
    bits = torch.arange(127, dtype=torch.uint8).view(fp8.FORMAT).float()
    middle = (bits[1:] + bits[:-1]) / 2
    near = torch.cat((bits, middle, middle * (1 + 2**-20), middle * (1 - 2**-20)))
    lines = Lines(values=torch.cat((near, -near))[None, None].to(DEVICE))
    with interpreted():
        codes, scale = fp8.fp8_rows(lines)
    assert scale.item() == 1
    wanted = lines.values.to(fp8.FORMAT)
    assert torch.equal(codes.view(torch.uint8), wanted.view(torch.uint8))


def test_a_row_of_nothing_is_0_and_one_that_is_not_finite_is_flagged() -> None:
    values = torch.zeros(1, 3, 16)
    values[0, 1, 2], values[0, 2, 3] = torch.nan, torch.inf
    lines = Lines(values=values.to(DEVICE))
    with interpreted():
        card = fp8.fp8_rows(lines)
    for codes, scale in (card, fp8.reference_rows(Lines(values=values))):
        assert scale.cpu().isnan().tolist() == [[False, True, True]]
        assert scale[0, 0] > 0
        assert not codes[0, 0].float().any()


def some_product(
    shape: tuple[int, ...], outputs: int, taps: int, size: tuple[int, ...]
) -> tuple[torch.Tensor, ...]:
    """Returns codes, a weight, and scales of its rows."""
    generator = torch.Generator().manual_seed(sum(shape))
    codes = (torch.randn(shape, generator=generator) * 50).to(fp8.FORMAT)
    weight = torch.randn(outputs, taps * shape[-1], generator=generator)
    return codes, weight, torch.rand(size, generator=generator) + 0.1


@pytest.mark.parametrize("size", [(), (2,), (1, 9), (2, 9)])
@pytest.mark.parametrize(("channels", "outputs"), [(64, 16), (50, 33), (1, 1)])
def test_a_product_of_rows_is_the_sum_of_its_values(
    size: tuple[int, ...], channels: int, outputs: int
) -> None:
    codes, weight, scale = some_product((2, 9, channels), outputs, 1, size)
    levels, columns = fp8.rounded_weight(weight)
    dense = levels.levels[:, 0].double() * columns[:, None].double()
    assert (dense - weight).abs().max() <= 2**-4 * weight.abs().max()
    bias = torch.randn(outputs)
    wide = scale[:, None, None] if scale.ndim == 1 else scale[..., None]
    expected = (codes.double() * wide.double()) @ dense.T + bias.double()
    plain = reference_product(codes, levels, scale, None, columns, bias, torch.float32, Reading())
    part, _ = fp8.rounded_weight(weight.to(DEVICE))
    apart = torch.stack((codes, codes), 2).to(DEVICE)[:, :, 0]  # rows that lie apart
    given = [each.to(DEVICE) for each in (scale, columns, bias)]
    with interpreted():
        found = fp8.fp8_product(apart, part, *given, torch.float32)
    for product, off in ((found.cpu(), OFF), (plain, 1e-6)):
        assert product.shape == (2, 9, outputs)
        assert (product.double() - expected).abs().max() < off * expected.abs().max()


@pytest.mark.parametrize(("stride", "dilation", "pad"), [((1, 1), (1, 1), 1), ((2, 1), (1, 2), 2)])
def test_a_convolution_has_a_scale_for_each_pixel_and_a_border_of_0(
    stride: tuple[int, int], dilation: tuple[int, int], pad: int
) -> None:
    maps, weight, scale = some_product((2, 5, 6, 20), 33, 9, (2, 30))
    levels, columns = fp8.rounded_weight(weight, 9)
    seen = maps.double() * scale.reshape(2, 5, 6, 1).double()
    dense = levels.levels.double() * columns[:, None, None].double()
    expected = torch.nn.functional.conv2d(
        seen.permute(0, 3, 1, 2),
        dense.reshape(33, 3, 3, 20).permute(0, 3, 1, 2),
        stride=stride,
        dilation=dilation,
        padding=pad,
    ).permute(0, 2, 3, 1)
    reading = Reading(
        kernel=(3, 3), stride=stride, dilation=dilation, border=Border(pad, pad, pad, pad)
    )
    plain = reference_product(maps, levels, scale, None, columns, None, torch.float32, reading)
    part, _ = fp8.rounded_weight(weight.to(DEVICE), 9)
    with interpreted():
        found = fp8.fp8_product(
            maps.to(DEVICE),
            part,
            scale.to(DEVICE),
            columns.to(DEVICE),
            None,
            torch.float32,
            reading,
        )
    for product, off in ((found.cpu(), OFF), (plain, 1e-6)):
        assert product.shape == expected.shape
        assert (product.double() - expected).abs().max() < off * expected.abs().max()


def test_who_computes_follows_the_card_and_the_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own product for many rows in bfloat16, and the same values in fp16 before Ada."""
    codes, weight, scale = some_product((2, 80, 32), 48, 1, (2, 80))
    codes, weight, scale = (each.to(DEVICE) for each in (codes, weight, scale))
    levels, columns = fp8.rounded_weight(weight)
    given = (codes, levels, scale, columns, None)
    calls: list[str] = []

    def counted(*args: torch.Tensor | None) -> torch.Tensor:
        calls.append("library")
        return fp8.reference_product(*args[:3], None, *args[3:], torch.bfloat16, Reading())  # pyright: ignore[reportArgumentType, reportCallIssue]

    exact = reference_product(*given[:3], None, *given[3:], torch.float32, Reading())
    whole = fp8.library_product(*given) if DEVICE == "cpu" else exact
    assert (whole.float() - exact).abs().max() < 2**-8 * exact.abs().max()
    monkeypatch.setattr(fp8, "library_product", counted)
    with interpreted():
        for fault in ("", "fails"):
            monkeypatch.setattr(support, "library_fault", lambda _, fault=fault: fault)
            for few, dtype in ((80, torch.bfloat16), (80, torch.float32), (40, torch.bfloat16)):
                part = (codes[:, :few], levels, scale[:, :few], columns, None)
                found = fp8.fp8_product(*part, dtype)
                assert found.dtype == dtype
                assert (found.float() - exact[:, :few]).abs().max() < 2**-7 * exact.abs().max()
        assert calls == ["library"]
        monkeypatch.setattr(fp8.backend, "refusal", lambda *_: "no units")
        found = fp8.fp8_product(*given, torch.float32)
    assert (found - exact).abs().max() < 1e-6 * exact.abs().max()


def test_a_record_says_who_multiplies_8_bit_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, fault, product, library in (
        ((8, 6), "no units", "torch", "triton"),
        ((9, 0), "", "triton", "torch"),
        ((12, 0), "torch's scaled_mm fails", "triton", "triton"),
    ):
        found = support.Card(name="a card", capability=capability)
        monkeypatch.setattr(support, "card", lambda _=0, found=found: found)
        monkeypatch.setattr(support, "library_fault", lambda _, fault=fault: fault)
        rows = {item.op: item for item in kernels.status()}
        assert rows["card fp8_product"].backend == product
        assert rows["card fp8_rows"].backend == "triton"
        many = rows["card fp8_product of many rows"]
        assert many.backend == library
        assert many.reason == fault or "scaled_mm" in many.reason
        assert ("fp16" in rows["card fp8_product"].reason) == (capability < (8, 9))
