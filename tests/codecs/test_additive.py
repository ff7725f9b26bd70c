"""Additive codebooks: gradients against autograd, quality, and the Hessian against closed forms."""

from __future__ import annotations

import pytest
import torch

from vqdq import codecs
from vqdq.codecs import rotation
from vqdq.codecs.additive import AdditiveCodec, AdditiveParams
from vqdq.codecs.base import Packed
from vqdq.errors import UserError


def gaussian(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def decode_in_torch(packed: Packed, books: torch.Tensor, block: int) -> torch.Tensor:
    """The decoded weight as a differentiable function of the codebooks [M, codewords, dim]."""
    codes = packed.tensors["codes"].long()
    sums = torch.stack([book[codes[:, :, m]] for m, book in enumerate(books)]).sum(dim=0)
    rotated = sums.reshape(len(codes), -1) * packed.tensors["scales"].float()[:, None]
    if block == 0:
        return rotated
    matrix = torch.ones(1, 1)
    while len(matrix) < block:
        matrix = torch.kron(matrix, torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    turned = (rotated.reshape(-1, block) @ matrix * block**-0.5).reshape(rotated.shape)
    return turned * rotation.signs(packed.tensors["signs"], rotated.shape[1])


@pytest.mark.parametrize(("block", "size"), [(0, 8), (64, 4)])
def test_codebook_gradient_is_the_one_of_autograd(block: int, size: int) -> None:
    params = AdditiveParams(
        num_codebooks=2, group_size=size, codebooks="layer", rotation=block, rounds=1, beam=2
    )
    codec = AdditiveCodec(params)
    packed = codec.encode(gaussian(24, 128))
    wanted = gaussian(24, 128, seed=1)
    books = packed.tensors["codebooks"].float().requires_grad_()
    decoded = decode_in_torch(packed, books, block)
    assert torch.allclose(decoded, packed.decode(), atol=1e-5)
    (decoded * wanted).sum().backward()
    assert books.grad is not None
    assert torch.allclose(codec.codebook_gradient(packed, wanted), books.grad, atol=1e-4)


def test_learnt_codebooks_are_stored_on_the_grid() -> None:
    codec = AdditiveCodec(AdditiveParams(num_codebooks=1, codebooks="layer", rounds=0))
    packed = codec.encode(gaussian(16, 64))
    moved = codec.with_codebooks(packed, packed.tensors["codebooks"].float() * 1.1 + 0.001)
    books = moved.tensors["codebooks"].float() * 128
    assert torch.equal(books, books.round())
    assert moved.storage == packed.storage
    assert torch.equal(moved.tensors["codes"], packed.tensors["codes"])


def test_universal_codebooks_are_not_learnt() -> None:
    codec = AdditiveCodec(AdditiveParams())
    packed = codec.encode(gaussian(16, 64))
    assert codec.codebook_gradient(packed, gaussian(16, 64)).numel() == 0
    with pytest.raises(UserError, match="universal codebooks"):
        codec.with_codebooks(packed, torch.zeros(3, 256, 8))


def test_codec_is_registered() -> None:
    assert codecs.get("additive") is AdditiveCodec
