"""Every compiled kernel returns the bits of its torch reference, for any shape and threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from vqdq import kernels, packing
from vqdq.kernels import cpu, int8, int8_reference, reference, statistics, statistics_reference


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors are fastest on one thread, and much so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_threads_do_not_change_the_codes() -> None:
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randint(-300, 300, (1000, 8), generator=generator, dtype=torch.int16)
    books = torch.randint(-300, 300, (3, 256, 8), generator=generator, dtype=torch.int16)
    torch.set_num_threads(3)
    codes = cpu.additive_encode(vectors, books, 4)
    torch.set_num_threads(1)
    assert torch.equal(codes, cpu.additive_encode(vectors, books, 4))


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


@pytest.mark.parametrize("dim", [4, 8, 16])
@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
def test_decoding_rotated_sums_equals_the_reference_and_the_two_steps(dim: int, block: int) -> None:
    generator = torch.Generator().manual_seed(block)
    codes = torch.randint(0, 64, (5 * 512 // dim, 3), generator=generator).to(torch.uint8)
    books = (torch.randn(3, 64, dim, generator=generator) * 128).round() / 128
    scales = torch.rand(5, generator=generator)
    signs = torch.randint(0, 2, (512,), generator=generator) * 2.0 - 1
    decoded = cpu.additive_decode_rotated(codes, books, scales, 512 // dim, block, signs)
    expected = reference.additive_decode_rotated(codes, books, scales, 512 // dim, block, signs)
    assert torch.equal(decoded, expected)
    plain = cpu.additive_decode(codes, books, scales, 512 // dim)
    assert torch.allclose(decoded, cpu.hadamard(plain, block) * signs, atol=1e-5)


@pytest.mark.parametrize(("dim", "words", "columns"), [(8, 256, 272), (4, 64, 136), (16, 16, 160)])
def test_additive_feedback_equals_the_reference(dim: int, words: int, columns: int) -> None:
    """Over the edge of a block of columns, rows by threads."""
    generator = torch.Generator().manual_seed(dim)
    weight = torch.randn(70, columns, generator=generator) * 128
    books = (torch.randn(2, words, dim, generator=generator) * 80).round().to(torch.int16)
    unit = torch.randn(columns, columns, generator=generator).triu(1) * 0.1
    metric = torch.randn(columns // dim, dim, dim, generator=generator)
    metric = metric / metric.norm(dim=1).amax(dim=1)[:, None, None]
    seen = (books.float() @ metric[:, None]).round().clamp(-768, 768).to(torch.int16)
    codes = cpu.additive_feedback(weight, unit, metric, books, seen, 3)
    expected = reference.additive_feedback(weight, unit, metric, books, seen, 3)
    assert torch.equal(codes, expected)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(cpu.additive_feedback(weight, unit, metric, books, seen, 3), codes)
    finally:
        torch.set_num_threads(threads)


def test_feedback_under_the_identity_is_the_plain_search() -> None:
    generator = torch.Generator().manual_seed(11)
    weight = torch.randn(40, 64, generator=generator) * 128
    books = (torch.randn(2, 256, 8, generator=generator) * 80).round().to(torch.int16)
    metric = torch.eye(8).repeat(8, 1, 1)
    codes = kernels.additive_feedback(weight, torch.eye(64), metric, books, 4)
    plain = kernels.additive_encode(weight.round().to(torch.int16).reshape(-1, 8), books, 4)
    assert torch.equal(codes, plain)


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
    processor = kernels.status()[: len(kernels.OPERATIONS)]
    assert {status.op for status in processor} == set(kernels.OPERATIONS)
    for status in processor[:-1]:
        assert status.backend == "cpu", status.reason
        assert callable(getattr(kernels, status.op))
        plain = int8_reference if status.op in int8.OPERATIONS else reference
        plain = statistics_reference if status.op in statistics.OPERATIONS else plain
        assert callable(getattr(plain, status.op))
    assert processor[-1].op == kernels.PRODUCTS
    from vqdq.kernels import beam, lookup, sums, viterbi

    compiled = [lookup.decode_rows, beam.encode_vectors, sums.decode_rows]
    assert [len(kernel.signatures) for kernel in compiled] == [1, 1, 1]  # nothing recompiles
    shapes = len(kernels.TRELLIS_FORMS)
    assert len(viterbi.encode_columns.signatures) == shapes
    assert len(viterbi.encode_fed.signatures) == shapes
