"""Every compiled kernel returns the bits of its torch reference, for any shape and threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from vqdq import kernels, packing
from vqdq.kernels import cpu, reference


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors are fastest on one thread, and much so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trellis_table(state_bits: int, generator: torch.Generator) -> torch.Tensor:
    values = torch.randn(1 << state_bits, generator=generator) * 32
    return values.round().clamp(-127, 127).to(torch.int8)


@pytest.mark.parametrize(
    ("bits", "state_bits", "rows", "columns"),
    [
        (2, 8, 4, 1),
        (2, 12, 6, 3),
        (2, 10, 33, 17),
        (3, 8, 3, 5),
        (3, 12, 13, 33),
        (3, 10, 64, 16),
        (4, 8, 2, 2),
        (4, 12, 3, 18),
        (4, 10, 50, 40),
    ],
)
def test_trellis_equals_the_reference(bits: int, state_bits: int, rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    table = trellis_table(state_bits, generator)
    targets = (torch.randn(rows, columns, generator=generator) * 256).to(torch.int16)
    codes = cpu.trellis_encode(targets, table, bits)
    assert torch.equal(codes, reference.trellis_encode(targets, table, bits))
    decoded = cpu.trellis_decode(codes, table, bits, rows)
    assert torch.equal(decoded, reference.trellis_decode(codes, table, bits, rows))


def test_trellis_equals_the_reference_far_outside_the_table() -> None:
    targets = torch.full((20, 17), 32767, dtype=torch.int16)
    targets[::2] = -32768
    table = trellis_table(8, torch.Generator().manual_seed(0))
    expected = reference.trellis_encode(targets, table, 3)
    assert torch.equal(cpu.trellis_encode(targets, table, 3), expected)


def test_threads_do_not_change_the_codes() -> None:
    generator = torch.Generator().manual_seed(1)
    targets = (torch.randn(24, 100, generator=generator) * 256).to(torch.int16)
    table = trellis_table(10, generator)
    vectors = torch.randint(-300, 300, (1000, 8), generator=generator, dtype=torch.int16)
    books = torch.randint(-300, 300, (3, 256, 8), generator=generator, dtype=torch.int16)
    torch.set_num_threads(3)
    both = cpu.trellis_encode(targets, table, 3), cpu.additive_encode(vectors, books, 4)
    torch.set_num_threads(1)
    assert torch.equal(both[0], cpu.trellis_encode(targets, table, 3))
    assert torch.equal(both[1], cpu.additive_encode(vectors, books, 4))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_trellis_decodes_as_the_walk_through_its_states(bits: int) -> None:
    """Row by row, by hand: the window slides by `bits`, its new bits come in at the top."""
    rows, state_bits = 11, 8
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


def test_viterbi_comes_near_the_best_of_all_tail_biting_codes() -> None:
    """Eight rows of two bits are 65536 codes; the seam is settled by a window, not a search."""
    generator = torch.Generator().manual_seed(3)
    table = trellis_table(8, generator)
    every = torch.stack((torch.arange(65536) % 256, torch.arange(65536) // 256)).to(torch.uint8)
    levels = reference.trellis_decode(every, table, 2, 8).float()  # [8, 65536]
    targets = (torch.randn(8, 60, generator=generator) * 256).to(torch.int16)
    found = cpu.trellis_decode(cpu.trellis_encode(targets, table, 2), table, 2, 8).float()
    wanted = targets.float() / 8
    best = torch.stack(
        [(column[:, None] - levels).square().sum(dim=0).amin() for column in wanted.T]
    )
    reached = (wanted - found).square().sum(dim=0)
    assert bool((reached >= best - 0.01).all())
    assert float(reached.sum()) <= 1.5 * float(best.sum())


def test_data_drawn_from_the_trellis_decodes_exactly() -> None:
    generator = torch.Generator().manual_seed(5)
    table = trellis_table(10, generator)
    codes = torch.randint(0, 256, (24, 9), generator=generator, dtype=torch.uint8)
    levels = cpu.trellis_decode(codes, table, 3, 64)
    again = cpu.trellis_encode((levels.int() * 8).to(torch.int16), table, 3)
    assert torch.equal(cpu.trellis_decode(again, table, 3, 64), levels)


@pytest.mark.parametrize("dim", [4, 8, 16])
@pytest.mark.parametrize(("count", "beam"), [(1, 1), (1, 4), (2, 1), (2, 8), (3, 3), (4, 2)])
def test_additive_equals_the_reference(dim: int, count: int, beam: int) -> None:
    generator = torch.Generator().manual_seed(dim)
    vectors = (torch.randn(150, dim, generator=generator) * 128).round().to(torch.int16)
    books = (torch.randn(count, 256, dim, generator=generator) * 80).round().to(torch.int16)
    books[:, 7] = books[:, 200]  # ties
    codes = cpu.additive_encode(vectors, books, beam)
    assert torch.equal(codes, reference.additive_encode(vectors, books, beam))
    scales = torch.rand(30, generator=generator)
    decoded = cpu.additive_decode(codes, books.float() / 128, scales, 5)
    assert torch.equal(decoded, reference.additive_decode(codes, books.float() / 128, scales, 5))


def test_data_drawn_from_a_codebook_decodes_exactly() -> None:
    generator = torch.Generator().manual_seed(6)
    book = (torch.randn(1, 256, 8, generator=generator) * 128).round().to(torch.int16)
    names = torch.randint(0, 256, (500, 1), generator=generator)
    assert torch.equal(cpu.additive_encode(book[0][names[:, 0]], book, 1).long(), names)


def test_two_codebooks_with_the_whole_beam_find_every_drawn_sum() -> None:
    generator = torch.Generator().manual_seed(7)
    books = (torch.randn(2, 256, 8, generator=generator) * 128).round().to(torch.int16)
    names = torch.randint(0, 256, (100, 2), generator=generator)
    vectors = books[0][names[:, 0]] + books[1][names[:, 1]]
    codes = cpu.additive_encode(vectors, books, 256).long()
    assert torch.equal(books[0][codes[:, 0]] + books[1][codes[:, 1]], vectors)


@pytest.mark.parametrize("block", [1, 2, 8, 16, 32, 64])
def test_hadamard_equals_the_reference_and_is_its_own_inverse(block: int) -> None:
    x = torch.randn(7, 192, generator=torch.Generator().manual_seed(8))
    once = cpu.hadamard(x, block)
    assert torch.equal(once, reference.hadamard(x, block))
    assert torch.allclose(cpu.hadamard(once, block), x, atol=1e-5)
    assert torch.allclose(once.norm(dim=1), x.norm(dim=1), rtol=1e-5)


def test_hadamard_is_the_sylvester_matrix() -> None:
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    sylvester = torch.kron(two, torch.kron(two, two)) / 8**0.5
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(9))
    expected = (x.reshape(5, 3, 8) @ sylvester).reshape(5, 24)
    assert torch.allclose(cpu.hadamard(x, 8), expected, atol=1e-5)


def test_grid_errors_equal_the_reference_and_the_definition() -> None:
    generator = torch.Generator().manual_seed(10)
    groups = torch.randn(9, 33, generator=generator)
    steps = torch.rand(9, 5, generator=generator) * 0.5
    steps[3, 2] = 0.0
    zeros = torch.tensor([3.5, 3.0, 0.0, 7.0, 3.5]).expand(9, 5)
    errors = cpu.grid_errors(groups, steps, zeros, 7)
    assert torch.equal(errors, reference.grid_errors(groups, steps, zeros, 7))
    codes = (groups[:, None, :] / steps[:, :, None].clamp_min(1e-9) + zeros[:, :, None]).round()
    values = (codes.clamp(0, 7) - zeros[:, :, None]) * steps[:, :, None]
    expected = (values - groups[:, None, :]).double().square().sum(dim=2)
    assert torch.allclose(errors, expected, rtol=1e-5)


@pytest.mark.parametrize("bits", range(1, 9))
def test_bit_packing_equals_the_reference(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    values = torch.randint(0, 1 << bits, (1003,), generator=generator).to(torch.uint8)
    stream = cpu.pack_bits(values, bits)
    assert torch.equal(stream, packing.pack(values, bits))
    assert torch.equal(cpu.unpack_bits(stream, bits, 1003), values)


def test_every_operation_has_one_backend_and_one_compiled_version() -> None:
    kernels.warm()
    assert {status.op for status in kernels.status()} == set(kernels.OPERATIONS)
    for status in kernels.status():
        assert status.backend == "cpu", status.reason
        assert callable(getattr(kernels, status.op))
        assert callable(getattr(reference, status.op))
    from vqdq.kernels import beam, viterbi

    compiled = [viterbi.encode_columns, beam.encode_vectors, beam.decode_rows]
    assert [len(kernel.signatures) for kernel in compiled] == [1, 1, 1]  # nothing recompiles
