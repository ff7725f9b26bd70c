"""Additive codebooks: gradients against autograd, quality, and the Hessian against closed forms."""

from __future__ import annotations

import pytest
import torch

from vqdq import codecs, kernels
from vqdq.codecs import block_feedback, codebooks, feedback, rotation
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


def relative_error(weight: torch.Tensor, decoded: torch.Tensor) -> float:
    return float((weight - decoded).square().sum() / weight.square().sum())


@pytest.mark.parametrize(
    ("count", "rounds", "goal"), [(2, 8, 0.0905), (3, 6, 0.0255), (4, 2, 0.0076)]
)
def test_own_codebooks_reach_their_goal(count: int, rounds: int, goal: float) -> None:
    """Eight rounds are the default; with more codebooks fewer are enough."""
    weight = gaussian(1280, 1280)
    packed = codecs.encode(weight, "additive", num_codebooks=count, rounds=rounds)
    assert "codebooks" in packed.tensors
    assert packed.storage.bits_per_weight <= count + 0.095
    assert 4.0**-count < relative_error(weight, packed.decode()) <= goal


def test_least_squares_is_the_one_of_lstsq() -> None:
    """Two codebooks of 16 words: the design matrix has a one for each word of a vector."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (400, 2), generator=generator)
    vectors = (torch.randn(400, 4, generator=generator) * 128).round().to(torch.int16)
    books = (torch.randn(2, 16, 4, generator=generator) * 128).round().to(torch.int16)
    solved, error = codebooks.least_squares(vectors, codes.to(torch.uint8), books)
    design = torch.nn.functional.one_hot(codes + torch.tensor([0, 16]), 32).sum(dim=1).double()
    present = design @ books.reshape(32, 4).double()
    assert error == pytest.approx(float((vectors - present).square().sum()))
    held = torch.cat((design, torch.eye(32, dtype=torch.float64)))
    wanted = torch.cat((vectors.double(), books.reshape(32, 4).double()))
    expected = torch.linalg.lstsq(held, wanted, driver="gelsd").solution
    assert torch.allclose(solved.reshape(32, 4), expected, atol=1e-6)


def covariance(width: int, power: float, seed: int = 3) -> torch.Tensor:
    """A covariance with eigenvalues i**-power in a random basis, [width, width]."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
    spectrum = torch.arange(1, width + 1, dtype=torch.float64) ** -power
    return ((basis * spectrum) @ basis.T).float()


def loss(weight: torch.Tensor, decoded: torch.Tensor, hessian: torch.Tensor) -> float:
    error = (weight - decoded).double()
    return float(((error @ hessian.double()) * error).sum())


def test_block_factor_is_the_cholesky_factor_by_groups() -> None:
    """‖Δ R‖² = Σ ‖(t_G − ŵ_G) R_GG‖², and det(R_GG)² = det(H_G given all later columns)."""
    hessian = covariance(48, 1.0).double()
    factor = feedback.factor(hessian, 0.0)
    groups = block_feedback.by_groups(factor, 8)
    error = gaussian(5, 48).double()  # t − ŵ by groups
    delta = torch.linalg.solve_triangular(
        groups.unit.double(), error, upper=True, unitriangular=True, left=False
    )
    total = float(((delta @ hessian) * delta).sum())
    parts, volumes = 0.0, []
    for group in range(6):
        inside = slice(8 * group, 8 * group + 8)
        after = slice(8 * group + 8, 48)
        later = torch.linalg.solve(hessian[after, after], hessian[after, inside])
        given = hessian[inside, inside] - hessian[inside, after] @ later  # R_GG R_GGᵀ
        parts += float(((error[:, inside] @ given) * error[:, inside]).sum())
        volumes.append(float(torch.linalg.det(given)) ** (1 / 8))
        metric = groups.metric[group].double()
        ratio = metric @ metric.T / given
        assert torch.allclose(ratio, ratio.mean().expand_as(ratio), rtol=1e-3)
    assert total == pytest.approx(parts, rel=1e-4)
    mean = sum(volumes) / 6 / float(hessian.diagonal().mean())
    assert groups.predicted_gain == pytest.approx(mean, rel=1e-5)
    assert groups.predicted_gain <= factor.predicted_gain


@pytest.mark.parametrize(("power", "count"), [(0.5, 2), (0.5, 3), (1.0, 3)])
def test_feedback_gains_what_the_closed_form_predicts(power: float, count: int) -> None:
    """Against independent errors of the same code: within 3 %, or better."""
    weight, hessian = gaussian(256, 384), covariance(384, power)
    params = {"num_codebooks": count, "codebooks": "universal", "rotation": 0}
    plain = codecs.encode(weight, "additive", **params).decode()
    fed = codecs.encode(weight, "additive", hessian=hessian, damping=0.01, **params).decode()
    independent = relative_error(weight, plain) * 256 * float(hessian.diagonal().sum())
    gain = loss(weight, fed, hessian) / independent
    factor = feedback.factor(hessian, 0.01)
    predicted = block_feedback.by_groups(factor, 8).predicted_gain
    assert 0.9 * predicted < gain < 1.03 * predicted


def test_refit_solves_the_weighted_least_squares() -> None:
    """Conjugate gradients to the end against a dense solution of the normal equations."""
    weight, hessian = gaussian(40, 32), covariance(32, 1.0)
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 16, (40 * 8, 2), generator=generator).to(torch.uint8)
    books = (torch.randn(2, 16, 4, generator=generator) * 64).round() / 128
    scales = torch.rand(40, generator=generator) + 0.5
    found = block_feedback.refit(weight, codes, scales, books, hessian, 0.1, steps=60)
    units = torch.eye(2 * 16 * 4).reshape(-1, 2, 16, 4)
    columns = [kernels.additive_decode(codes, unit.contiguous(), scales, 8) for unit in units]
    design = torch.stack(columns).double()  # [unknowns, rows, columns]
    damped = hessian.double() + 0.1 * hessian.double().diagonal().mean() * torch.eye(32)
    root = torch.linalg.cholesky(damped)
    seen = (design @ root).reshape(len(units), -1).T
    best = torch.linalg.lstsq(seen, (weight.double() @ root).reshape(-1, 1), driver="gelsd")
    remaining = (seen @ best.solution)[:, 0] - (weight.double() @ root).reshape(-1)
    decoded = kernels.additive_decode(codes, found, scales, 8)
    least = float(remaining.square().sum())
    assert block_feedback.weighted_loss(weight, decoded, hessian, 0.1) == pytest.approx(
        least, rel=1e-4
    )


def test_own_codebooks_under_a_hessian_beat_those_trained_without() -> None:
    weight, hessian = gaussian(128, 256), covariance(256, 1.0)
    errors = []
    for rounds in (1, 4):
        params = {"num_codebooks": 2, "codebooks": "layer", "beam": 4, "rounds": rounds}
        packed = codecs.encode(weight, "additive", hessian=hessian, **params)
        errors.append(loss(weight, packed.decode(), hessian))
    assert errors[1] < 0.95 * errors[0]


@pytest.mark.parametrize(("rotation_block", "share"), [(0, 0.9), (64, 0.5)])
def test_a_hessian_lowers_its_own_loss_in_either_basis(rotation_block: int, share: float) -> None:
    """Channels of uneven power: in their own basis a few carry it all and nothing can make good."""
    power = torch.logspace(-1, 1, 128)
    hessian = power[:, None] * covariance(128, 0.8) * power
    weight = gaussian(64, 128)
    params = {"num_codebooks": 2, "rotation": rotation_block}
    plain = codecs.encode(weight, "additive", **params).decode()
    fed = codecs.encode(weight, "additive", hessian=hessian, **params).decode()
    assert loss(weight, fed, hessian) < share * loss(weight, plain, hessian)


def test_threads_do_not_change_the_bytes_under_a_hessian() -> None:
    weight, hessian = gaussian(200, 384), covariance(384, 1.0)
    params = {"num_codebooks": 2, "codebooks": "layer", "beam": 2, "rounds": 2}
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(codecs.encode(weight, "additive", hessian=hessian, **params).tensors)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


@pytest.mark.parametrize("rank", [0, 3])
def test_a_singular_hessian_is_damped(rank: int) -> None:
    inputs = gaussian(rank, 64)
    weight = gaussian(16, 64)
    packed = codecs.encode(weight, "additive", hessian=inputs.T @ inputs)
    assert relative_error(weight, packed.decode()) < 0.2


@pytest.mark.parametrize(("count", "bits", "size"), [(3, 7, 8), (2, 4, 4), (4, 6, 16), (3, 5, 8)])
def test_fewer_bits_a_codeword_make_rates_in_between(count: int, bits: int, size: int) -> None:
    weight = gaussian(96, 512)
    params = {"num_codebooks": count, "codeword_bits": bits, "group_size": size}
    packed = codecs.encode(weight, "additive", codebooks="universal", **params)
    rate = count * bits / size
    assert packed.tensors["codes"].numel() * 8 == rate * weight.numel()
    error = relative_error(weight, packed.decode())
    assert 4.0**-rate < error < 1.9 * 4.0**-rate


def test_weights_beyond_six_deviations_keep_their_size() -> None:
    """Own codebooks take a coarser grid rather than clamp; unrotated, as in VQDM."""
    weight = gaussian(64, 64)
    weight[:, ::16] *= 20
    params = AdditiveParams(num_codebooks=3, codebooks="layer", rotation=0, rounds=6)
    assert relative_error(weight, AdditiveCodec(params).encode(weight).decode()) < 0.01
