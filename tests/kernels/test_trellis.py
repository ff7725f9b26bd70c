"""The trellis kernels return the bits of their torch reference, for any shape and threads."""

from __future__ import annotations

import pytest
import torch

from vqdq import packing
from vqdq.kernels import cpu, reference


def trellis_table(state_bits: int, generator: torch.Generator) -> torch.Tensor:
    values = torch.randn(1 << state_bits, generator=generator) * 32
    return values.round().clamp(-127, 127).to(torch.int8)


SHAPES = [
    (2, 8, 4, 1),
    (2, 12, 6, 1),
    (2, 10, 33, 1),
    (2, 14, 9, 1),
    (2, 16, 8, 1),
    (3, 8, 3, 5),
    (3, 12, 13, 2),
    (3, 12, 70, 9),
    (3, 10, 63, 2),
    (3, 16, 6, 1),
    (3, 8, 255, 2),
    (3, 8, 256, 2),
    (3, 8, 773, 3),  # three sequences: 256, 256 and 261 rows
    (4, 8, 2, 2),
    (4, 12, 3, 3),
    (4, 10, 50, 4),
    (4, 8, 511, 2),
    (4, 14, 17, 1),
    (5, 10, 7, 3),
    (5, 12, 515, 1),
    (6, 12, 2, 1),
    (6, 14, 65, 1),
]


@pytest.mark.parametrize(("bits", "state_bits", "rows", "columns"), SHAPES)
def test_trellis_equals_the_reference(bits: int, state_bits: int, rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    table = trellis_table(state_bits, generator)
    targets = (torch.randn(rows, columns, generator=generator) * 256).to(torch.int16)
    codes = cpu.trellis_encode(targets, table, bits)
    assert torch.equal(codes, reference.trellis_encode(targets, table, bits))
    decoded = cpu.trellis_decode(codes, table, bits, rows)
    assert torch.equal(decoded, reference.trellis_decode(codes, table, bits, rows))


@pytest.mark.parametrize(
    ("bits", "state_bits", "rows", "columns"),
    [(2, 8, 9, 140), (3, 8, 520, 7), (3, 10, 21, 5), (4, 10, 300, 4), (6, 12, 17, 4)],
)
def test_feedback_equals_the_reference(bits: int, state_bits: int, rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    table = trellis_table(state_bits, generator)
    weight = torch.randn(rows, columns, generator=generator)
    unit = torch.randn(columns, columns, generator=generator).triu(1) * 0.3
    scales = torch.rand(rows, generator=generator) / 16
    scales[1] = 0.0
    scales[2] = 1e-42  # 8 over it is infinite
    weight[2, 3] = 0.0
    codes = cpu.trellis_feedback(weight, scales, unit, table, bits)
    assert torch.equal(codes, reference.trellis_feedback(weight, scales, unit, table, bits))


def test_feedback_of_nothing_is_rounding() -> None:
    generator = torch.Generator().manual_seed(2)
    table = trellis_table(10, generator)
    weight = torch.randn(300, 6, generator=generator)
    fed = cpu.trellis_feedback(weight, torch.full((300,), 1 / 32), torch.eye(6), table, 3)
    targets = (weight * 256).round().to(torch.int16)
    assert torch.equal(fed, cpu.trellis_encode(targets, table, 3))


def test_trellis_equals_the_reference_far_outside_the_table() -> None:
    targets = torch.full((20, 17), 32767, dtype=torch.int16)
    targets[::2] = -32768
    generator = torch.Generator().manual_seed(0)
    for bits, state_bits in ((3, 8), (6, 12)):
        table = trellis_table(state_bits, generator)
        expected = reference.trellis_encode(targets, table, bits)
        assert torch.equal(cpu.trellis_encode(targets, table, bits), expected)


def test_threads_do_not_change_the_codes() -> None:
    generator = torch.Generator().manual_seed(1)
    targets = (torch.randn(520, 20, generator=generator) * 256).to(torch.int16)
    table = trellis_table(8, generator)
    weight, scales = targets / 8, torch.ones(520)
    unit = torch.randn(20, 20, generator=generator).triu(1) * 0.3

    def encode() -> tuple[torch.Tensor, torch.Tensor]:
        fed = cpu.trellis_feedback(weight, scales, unit, table, 3)
        return cpu.trellis_encode(targets, table, 3), fed

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        many = encode()
        torch.set_num_threads(1)
        one = encode()
    finally:
        torch.set_num_threads(before)
    assert torch.equal(many[0], one[0])
    assert torch.equal(many[1], one[1])


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("state_bits", [12, 16])
def test_trellis_decodes_as_the_walk_through_its_states(bits: int, state_bits: int) -> None:
    """Row by row, by hand: the window slides by `bits`, its new bits come in at the top."""
    rows = 11
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(
        0, 256, (packing.packed_bytes(rows, bits), 1), generator=generator, dtype=torch.uint8
    )
    table = trellis_table(state_bits, generator)
    values = packing.unpack(codes[:, 0], 1, rows * bits).tolist()
    state = sum(bit << place for place, bit in enumerate(values[:state_bits]))
    expected = []
    for row in range(rows):
        expected.append(int(table[state]))
        first = row * bits + state_bits
        fresh = sum(values[(first + i) % len(values)] << i for i in range(bits))
        state = (state >> bits) | (fresh << (state_bits - bits))
    assert cpu.trellis_decode(codes, table, bits, rows)[:, 0].tolist() == expected


def test_sequences_are_independent() -> None:
    """Each 256 rows decode from their own bytes, and the last takes what remains."""
    generator = torch.Generator().manual_seed(4)
    table = trellis_table(12, generator)
    codes = torch.randint(0, 256, (192 + 97, 5), generator=generator, dtype=torch.uint8)
    codes[-1] &= 3  # 770 bits are 96 bytes and two bits
    whole = cpu.trellis_decode(codes, table, 2, 768 + 385)
    assert torch.equal(whole[:256], cpu.trellis_decode(codes[:64], table, 2, 256))
    assert torch.equal(whole[768:], cpu.trellis_decode(codes[192:], table, 2, 385))


def test_few_rows_get_the_best_of_all_tail_biting_codes() -> None:
    """Eight rows of two bits are 65536 codes."""
    generator = torch.Generator().manual_seed(3)
    table = trellis_table(8, generator)
    every = torch.stack((torch.arange(65536) % 256, torch.arange(65536) // 256)).to(torch.uint8)
    levels = reference.trellis_decode(every, table, 2, 8).float()  # [8, 65536]
    targets = (torch.randn(8, 60, generator=generator) * 256).to(torch.int16)
    found = cpu.trellis_decode(cpu.trellis_encode(targets, table, 2), table, 2, 8).float()
    wanted = targets.float() / 8
    best = [(column[:, None] - levels).square().sum(dim=0).amin() for column in wanted.T]
    assert torch.allclose((wanted - found).square().sum(dim=0), torch.stack(best))


def test_data_drawn_from_the_trellis_decodes_exactly() -> None:
    generator = torch.Generator().manual_seed(5)
    table = trellis_table(10, generator)
    codes = torch.randint(0, 256, (24, 9), generator=generator, dtype=torch.uint8)
    levels = cpu.trellis_decode(codes, table, 3, 64)
    again = cpu.trellis_encode((levels.int() * 8).to(torch.int16), table, 3)
    assert torch.equal(cpu.trellis_decode(again, table, 3, 64), levels)


WIDTHS = [(9, 1, 1), (300, 45, 1), (8, 16, 16), (17, 112, 16), (20, 96, 32), (31, 192, 64)]


@pytest.mark.parametrize(("rows", "columns", "block"), [*WIDTHS, (260, 384, 128), (40, 512, 256)])
def test_weights_equal_the_reference_and_the_float_path(
    rows: int, columns: int, block: int
) -> None:
    generator = torch.Generator().manual_seed(rows)
    table = trellis_table(12, generator)
    size = (packing.packed_bytes(rows, 3), columns)
    codes = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    codes[-1] &= (1 << (rows * 3 - 1) % 8 + 1) - 1
    scales = torch.rand(rows, generator=generator)
    signs = torch.randint(0, 2, (columns,), generator=generator) * 2.0 - 1
    weight = cpu.trellis_weight(codes, table, 3, scales, signs, block)
    assert torch.equal(weight, reference.trellis_weight(codes, table, 3, scales, signs, block))
    levels = cpu.trellis_decode(codes, table, 3, rows).float() * scales[:, None]
    assert torch.allclose(weight, cpu.hadamard(levels, block) * signs, rtol=1e-5, atol=1e-4)


def test_hadamard_sums_of_the_largest_levels_do_not_overflow() -> None:
    table = torch.full((256,), -127, dtype=torch.int8)
    codes = torch.zeros(3, 256, dtype=torch.uint8)
    weight = cpu.trellis_weight(codes, table, 3, torch.ones(8), torch.ones(256), 256)
    assert torch.equal(weight[:, 0], torch.full((8,), -127 * 16.0))
    assert not weight[:, 1:].any()
