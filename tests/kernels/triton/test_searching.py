"""The card's encoders find the codes of the reference, to the last tie."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.triton.test_decoding import DEVICE
from vqdq import kernels
from vqdq.kernels import reference
from vqdq.kernels.backend import interpreted


def some_table(state_bits: int, generator: torch.Generator) -> torch.Tensor:
    values = torch.randn(1 << state_bits, generator=generator) * 32
    return values.round().clamp(-127, 127).to(torch.int8)


@pytest.mark.parametrize(("bits", "state_bits", "rows"), [(3, 8, 64), (5, 10, 65)])
def test_the_search_of_the_trellis_equals_the_reference(
    bits: int, state_bits: int, rows: int
) -> None:
    """Decisions in halves of bytes, and in bytes; the stream ends inside of a byte."""
    generator = torch.Generator().manual_seed(rows)
    table = some_table(state_bits, generator)
    targets = (torch.randn(rows, 1, generator=generator) * 256).to(torch.int16)
    expected = reference.trellis_encode(targets, table, bits)
    with interpreted():
        codes = kernels.trellis_encode(targets.to(DEVICE), table.to(DEVICE), bits)
    assert torch.equal(codes.cpu(), expected)


def test_short_sequences_take_the_cheapest_of_all_seams() -> None:
    generator = torch.Generator().manual_seed(2)
    table = some_table(8, generator)
    targets = (torch.randn(9, 3, generator=generator) * 256).to(torch.int16)
    with interpreted():
        codes = kernels.trellis_encode(targets.to(DEVICE), table.to(DEVICE), 3)
    assert torch.equal(codes.cpu(), reference.trellis_encode(targets, table, 3))


def test_error_feedback_equals_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the edge of a block of columns, with a row whose step is 0."""
    from vqdq.kernels.triton import searching

    monkeypatch.setattr(searching, "_BLOCK", 2)
    generator = torch.Generator().manual_seed(3)
    table, weight = some_table(8, generator), torch.randn(40, 4, generator=generator)
    unit = torch.randn(4, 4, generator=generator).triu(1) * 0.3
    scales = torch.rand(40, generator=generator) / 16
    scales[1] = 0.0
    expected = reference.trellis_feedback(weight, scales, unit, table, 3)
    with interpreted():
        given = [part.to(DEVICE) for part in (weight, scales, unit, table)]
        codes = kernels.trellis_feedback(*given, 3)
    assert torch.equal(codes.cpu(), expected)


def test_feedback_of_several_layers_at_once_equals_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vqdq.kernels.triton import searching

    monkeypatch.setattr(searching, "_BLOCK", 2)
    generator = torch.Generator().manual_seed(5)
    table, weights = some_table(8, generator), torch.randn(2, 40, 3, generator=generator)
    units = torch.randn(2, 3, 3, generator=generator).triu(1) * 0.3
    scales = torch.rand(2, 40, generator=generator) / 16
    layers = zip(weights, scales, units, strict=True)
    alone = [reference.trellis_feedback(*layer, table, 3) for layer in layers]
    assert not torch.equal(alone[0], alone[1])
    assert torch.equal(kernels.trellis_feedback(weights, scales, units, table, 3)[1], alone[1])
    with interpreted():
        given = [part.to(DEVICE) for part in (weights, scales, units, table)]
        codes = kernels.trellis_feedback(*given, 3)
    assert torch.equal(codes.cpu(), torch.stack(alone))


@pytest.mark.parametrize(("dim", "count", "beam"), [(8, 3, 3), (4, 2, 20), (16, 1, 1)])
def test_the_beam_search_equals_the_reference(dim: int, count: int, beam: int) -> None:
    """A beam wider than a codebook, and ties."""
    generator = torch.Generator().manual_seed(dim)
    vectors = (torch.randn(3, dim, generator=generator) * 128).round().to(torch.int16)
    books = (torch.randn(count, 16, dim, generator=generator) * 80).round().to(torch.int16)
    books[:, 7] = books[:, 9]
    with interpreted():
        codes = kernels.additive_encode(vectors.to(DEVICE), books.to(DEVICE), beam)
    assert torch.equal(codes.cpu(), reference.additive_encode(vectors, books, beam))


def test_feedback_by_groups_equals_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    from vqdq.kernels.triton import searching

    monkeypatch.setattr(searching, "_BLOCK", 8)
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(3, 12, generator=generator) * 128
    books = (torch.randn(2, 16, 4, generator=generator) * 80).round().to(torch.int16)
    unit = torch.randn(12, 12, generator=generator).triu(1) * 0.1
    metric = torch.randn(3, 4, 4, generator=generator)
    metric = metric / metric.norm(dim=1).amax(dim=1)[:, None, None]
    expected = kernels.additive_feedback(weight, unit, metric, books, 2)
    with interpreted():
        given = [part.to(DEVICE) for part in (weight, unit, metric, books)]
        codes = kernels.additive_feedback(*given, 2)
    assert torch.equal(codes.cpu(), expected)
