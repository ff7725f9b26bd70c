"""Training of additive codebooks: residual k-means to start, then codes and codebooks in turn.

Everything lives on a grid of 1/128 of a standard deviation. Codewords on it are exact in fp16, sums
and dot products are exact integers, and the loss is 0.1 % of the error at 4 bits.
"""

from __future__ import annotations

import torch

from vqdq import kernels

GRID = 128
LARGEST = 6 * GRID  # vectors and codewords are clamped at six standard deviations
CODEWORDS = 256


def to_grid(values: torch.Tensor) -> torch.Tensor:
    """Returns values in standard deviations as clamped grid integers, int16."""
    return (values * GRID).round().clamp(-LARGEST, LARGEST).to(torch.int16)


def refine(
    vectors: torch.Tensor, codebooks: torch.Tensor, *, beam: int, rounds: int
) -> torch.Tensor:
    """Returns codebooks after `rounds` of encoding and refitting (arXiv 2409.00492, section 3).

    Args:
        vectors: int16 [n, dim] on the grid; `codebooks`: int16 [num_codebooks, 256, dim].
    """
    for _ in range(rounds):
        codes = kernels.additive_encode(vectors, codebooks, beam)
        codebooks = refit(vectors, codes, codebooks)
    return codebooks


def refit(vectors: torch.Tensor, codes: torch.Tensor, codebooks: torch.Tensor) -> torch.Tensor:
    """Returns the codebooks that lower ‖vectors − Σ codewords‖² for fixed codes, int16.

    Three Gauss–Seidel sweeps of the least-squares problem: each codebook in turn becomes the mean
    of what the others leave. VQDM takes Adam steps on the same objective. Codewords that no vector
    uses stay.
    """
    count = len(codebooks)
    books = codebooks.double()
    used = [codes[:, index].long() for index in range(count)]
    sums, sizes = [], []
    for index in range(count):
        total = torch.zeros(books.shape[1:], dtype=torch.float64)
        sums.append(total.index_add_(0, used[index], vectors.double()))
        sizes.append(torch.bincount(used[index], minlength=CODEWORDS).double()[:, None])
    pairs: dict[tuple[int, int], torch.Tensor] = {}
    for first in range(count):
        for second in range(first + 1, count):
            joint = torch.bincount(used[first] * CODEWORDS + used[second], minlength=CODEWORDS**2)
            pairs[first, second] = joint.reshape(CODEWORDS, CODEWORDS).double()
            pairs[second, first] = pairs[first, second].T
    for _ in range(3):
        for index in range(count):
            rest = sums[index].clone()
            for other in range(count):
                if other != index:
                    rest -= pairs[index, other] @ books[other]
            mean = rest / sizes[index].clamp_min(1)
            books[index] = torch.where(sizes[index] > 0, mean, books[index])
    return books.round().clamp(-LARGEST, LARGEST).to(torch.int16)


def residual_kmeans(
    vectors: torch.Tensor, num_codebooks: int, *, rounds: int, generator: torch.Generator
) -> torch.Tensor:
    """Returns codebooks fitted one by one to what the earlier ones leave, int16 [M, 256, dim].

    Each starts from 256 randomly chosen residuals; a codeword that loses all its vectors restarts
    at another one.
    """
    left = vectors.clone()
    books: list[torch.Tensor] = []
    for _ in range(num_codebooks):
        picked = torch.randperm(len(left), generator=generator)[:CODEWORDS]
        book = left[picked]
        if len(book) < CODEWORDS:
            book = torch.cat((book, book.new_zeros(CODEWORDS - len(book), book.shape[1])))
        for _ in range(rounds):
            codes = kernels.additive_encode(left, book[None], 1)
            book = refit(left, codes, book[None])[0]
            sizes = torch.bincount(codes[:, 0].long(), minlength=CODEWORDS)
            empty = (sizes == 0).nonzero()[:, 0]
            fresh = torch.randint(len(left), (len(empty),), generator=generator)
            book[empty] = left[fresh]
        codes = kernels.additive_encode(left, book[None], 1)
        left = left - book[codes[:, 0].long()]
        books.append(book)
    return torch.stack(books)
