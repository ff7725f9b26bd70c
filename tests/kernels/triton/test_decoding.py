"""Weights decoded by the card's kernels are the reference's to the last bit.

Under Triton's interpreter where there is no card, compiled where there is one. A cast to bfloat16
is Triton's own; its interpreter rounds halves up, a card to even.
"""

from __future__ import annotations

import pytest
import torch

from vqdq import kernels, packing
from vqdq.kernels import reference
from vqdq.kernels.backend import interpreted

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def trellis(rows: int, columns: int, bits: int, state_bits: int) -> tuple[torch.Tensor, ...]:
    """Returns random codes, a table, scales and signs."""
    generator = torch.Generator().manual_seed(rows + columns)
    values = torch.randn(1 << state_bits, generator=generator) * 32
    size = (packing.packed_bytes(rows, bits), columns)
    codes = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    signs = torch.randint(0, 2, (columns,), generator=generator) * 2.0 - 1
    scales = torch.rand(rows, generator=generator)
    return codes, values.round().clamp(-127, 127).to(torch.int8), scales, signs


def on_card(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.to(DEVICE) for tensor in tensors]


@pytest.mark.parametrize(
    ("bits", "state_bits", "rows", "columns"),
    [
        (2, 8, 9, 1),
        (3, 8, 255, 4),  # one circular sequence whose bits end inside of a byte
        (3, 12, 261, 140),  # still one, of 261 rows
        (4, 14, 33, 129),
        (5, 12, 5, 3),
        (6, 12, 2, 3),  # the window is the whole sequence
        (2, 16, 8, 2),
    ],
)
def test_levels_equal_the_reference(bits: int, state_bits: int, rows: int, columns: int) -> None:
    codes, table, _, _ = trellis(rows, columns, bits, state_bits)
    expected = reference.trellis_decode(codes, table, bits, rows)
    with interpreted():
        levels = kernels.trellis_decode(*on_card(codes, table), bits, rows)
    assert torch.equal(levels.cpu(), expected)


def test_sequences_of_256_rows_are_circles_of_their_own() -> None:
    codes, table, _, _ = trellis(530, 2, 3, 10)
    with interpreted():
        levels = kernels.trellis_decode(*on_card(codes, table), 3, 530)
    assert torch.equal(levels.cpu(), reference.trellis_decode(codes, table, 3, 530))


@pytest.mark.parametrize(
    ("rows", "columns", "block"), [(9, 45, 1), (17, 112, 16), (70, 192, 64), (33, 512, 256)]
)
def test_weights_equal_the_reference_in_every_dtype(rows: int, columns: int, block: int) -> None:
    codes, table, scales, signs = trellis(rows, columns, 3, 12)
    expected = reference.trellis_weight(codes, table, 3, scales, signs, block)
    given = on_card(codes, table, scales, signs)
    with interpreted():
        whole = kernels.trellis_weight(*given[:2], 3, *given[2:], block)
        half = kernels.trellis_weight(*given[:2], 3, *given[2:], block, torch.float16)
        short = kernels.trellis_weight(*given[:2], 3, *given[2:], block, torch.bfloat16)
    assert torch.equal(whole.cpu(), expected)
    assert torch.equal(half.cpu(), expected.half())
    assert torch.allclose(short.cpu().float(), expected, rtol=2**-7)


def test_without_products_of_tiles_the_weight_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Turing the sums are un-rotated by butterflies: integers, exact in any order."""
    from vqdq.kernels.triton import decoding

    monkeypatch.setattr(decoding, "_multiplies", lambda _: False)
    codes, table, scales, signs = trellis(20, 128, 4, 10)
    expected = reference.trellis_weight(codes, table, 4, scales, signs, 64)
    given = on_card(codes, table, scales, signs)
    with interpreted():
        weight = kernels.trellis_weight(*given[:2], 4, *given[2:], 64)
    assert torch.equal(weight.cpu(), expected)


@pytest.mark.parametrize(
    ("dim", "block", "count"), [(4, 1, 1), (8, 64, 3), (16, 256, 4), (8, 16, 2)]
)
def test_sums_of_codewords_equal_the_reference(dim: int, block: int, count: int) -> None:
    generator = torch.Generator().manual_seed(dim)
    rows, groups = 5, 256 // dim
    codes = torch.randint(0, 64, (rows * groups, count), generator=generator).to(torch.uint8)
    books = (torch.randn(count, 64, dim, generator=generator) * 256).round() / 128
    scales = torch.rand(rows, generator=generator)
    signs = torch.randint(0, 2, (256,), generator=generator) * 2.0 - 1
    given = on_card(codes, books, scales, signs)
    with interpreted():
        if block == 1:
            expected = reference.additive_decode(codes, books, scales, groups)
            weight = kernels.additive_decode(*given[:3], groups)
        else:
            expected = reference.additive_decode_rotated(codes, books, scales, groups, block, signs)
            weight = kernels.additive_decode_rotated(*given[:3], groups, block, given[3])
    assert torch.equal(weight.cpu(), expected)


@pytest.mark.parametrize(("rows", "columns", "block"), [(3, 40, 1), (9, 24, 8), (5, 256, 128)])
def test_a_transform_equals_the_reference(rows: int, columns: int, block: int) -> None:
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(block))
    with interpreted():
        turned = kernels.hadamard(x.to(DEVICE), block)
    assert torch.equal(turned.cpu(), reference.hadamard(x, block))


@pytest.mark.parametrize("bits", [1, 3, 7, 8])
def test_bits_are_taken_apart_as_they_were_packed(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    values = torch.randint(0, 1 << bits, (1027,), generator=generator).to(torch.uint8)
    with interpreted():
        found = kernels.unpack_bits(packing.pack(values, bits).to(DEVICE), bits, 1027)
    assert torch.equal(found.cpu(), values)
