"""Rounding with feedback: the compiled loops return the bits of the torch reference."""

from __future__ import annotations

import pytest
import torch

from vqdq.kernels import cpu, reference


def noise(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("columns", "before", "rows"), [(1, 0, 1), (3, 1, 5), (7, 33, 64), (16, 45, 300), (2, 8, 257)]
)
def test_feed_forward_equals_the_reference(columns: int, before: int, rows: int) -> None:
    targets, errors = noise(columns, rows, seed=1), noise(before, rows, seed=2)
    unit = noise(before, columns, seed=3)
    found = cpu.feed_forward(targets, errors, unit)
    assert torch.equal(found, reference.feed_forward(targets, errors, unit))
    exact = targets.double() + unit.double().T @ errors.double()
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("columns", "rows", "levels"), [(1, 1, 2), (5, 3, 4), (24, 130, 16)])
def test_rounding_equals_the_reference(columns: int, rows: int, levels: int) -> None:
    weight, unit = noise(columns, rows, seed=1), noise(columns, columns, seed=2).triu(1) * 0.2
    targets = weight + 0.1 * noise(columns, rows, seed=3)
    steps, zeros = noise(3, rows, seed=4).abs(), noise(3, rows, seed=5)
    steps[0, 0] = 0.0
    group = torch.arange(columns) % 3
    table = noise(levels, seed=6).sort().values
    arguments = (targets, weight, unit + torch.eye(columns), steps, zeros, group, table)
    codes, errors = cpu.round_columns(*arguments)
    expected = reference.round_columns(*arguments)
    assert torch.equal(codes, expected[0])
    assert torch.equal(errors, expected[1])


@pytest.mark.parametrize(("groups", "size", "scales", "levels"), [(1, 1, 1, 2), (33, 17, 16, 8)])
def test_table_errors_equal_the_reference(groups: int, size: int, scales: int, levels: int) -> None:
    weight, steps = noise(groups, size, seed=1), noise(groups, scales, seed=2).abs()
    steps[0, 0] = 0.0
    table = noise(levels, seed=3).sort().values
    found = cpu.table_errors(weight, steps, table)
    assert torch.equal(found, reference.table_errors(weight, steps, table))
    assert float(found[0, 0]) == pytest.approx(float(weight[0].square().sum()))


def test_a_block_may_be_cut_anywhere() -> None:
    """Rounding all at once, or a few columns, feeding, and the rest: the same bits."""
    weight, unit = noise(20, 70, seed=1), noise(20, 20, seed=2).triu(1) * 0.3 + torch.eye(20)
    steps, zeros = torch.full((1, 70), 0.7), torch.full((1, 70), 1.5)
    group, table = torch.zeros(20, dtype=torch.int32), torch.arange(4.0)
    codes, _ = cpu.round_columns(weight, weight, unit, steps, zeros, group, table)
    first, errors = cpu.round_columns(
        weight[:7], weight[:7], unit[:7, :7], steps, zeros, group[:7], table
    )
    targets = cpu.feed_forward(weight[7:], errors, unit[:7, 7:])
    rest, _ = cpu.round_columns(targets, weight[7:], unit[7:, 7:], steps, zeros, group[7:], table)
    assert torch.equal(torch.cat((first, rest)), codes)


def test_threads_change_nothing() -> None:
    before, weight = torch.get_num_threads(), noise(16, 1000, seed=1)
    unit = noise(16, 16, seed=2).triu(1) * 0.3 + torch.eye(16)
    steps, zeros = torch.full((1, 1000), 0.7), torch.full((1, 1000), 1.5)
    group, table = torch.zeros(16, dtype=torch.int32), torch.arange(4.0)
    found: list[torch.Tensor] = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        codes, errors = cpu.round_columns(weight, weight, unit, steps, zeros, group, table)
        found.append(cpu.feed_forward(weight, errors, unit) + codes)
    torch.set_num_threads(before)
    assert torch.equal(*found)
