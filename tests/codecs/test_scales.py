"""The refit of row scales against an independent least-squares solver."""

from __future__ import annotations

import torch

from vqdq.codecs import scales


def noise(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(width: int, seed: int = 0) -> torch.Tensor:
    inputs = noise(3 * width, width, seed=seed) @ noise(width, width, seed=seed + 1)
    return inputs.T @ inputs / len(inputs)


def test_scales_are_the_least_squares_solution_under_the_hessian() -> None:
    """min_s ‖H^½ (w − s l)‖² solved row by row by LAPACK's least squares."""
    hessian = correlated(48)
    weight, levels = noise(20, 48, seed=5), noise(20, 48, seed=6).round()
    values, vectors = torch.linalg.eigh(hessian.double())
    root = vectors @ values.clamp_min(0).sqrt().diag() @ vectors.T
    solved = torch.stack(
        [
            torch.linalg.lstsq((root @ lev)[:, None], (root @ row)[:, None]).solution[0, 0]
            for row, lev in zip(weight.double(), levels.double(), strict=True)
        ]
    )
    fitted = scales.fitted_scales(weight, levels, hessian)
    torch.testing.assert_close(fitted.double(), solved, rtol=1e-5, atol=1e-6)


def test_damping_is_a_multiple_of_the_mean_diagonal_added() -> None:
    hessian, weight, levels = correlated(32), noise(8, 32, seed=1), noise(8, 32, seed=2).round()
    damped = hessian + 0.3 * hessian.diagonal().mean() * torch.eye(32)
    expected = scales.fitted_scales(weight, levels, damped)
    found = scales.fitted_scales(weight, levels, hessian, damping=0.3)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_identity_is_plain_least_squares_and_empty_rows_are_zero() -> None:
    weight, levels = noise(8, 32, seed=1), noise(8, 32, seed=2).round()
    levels[3] = 0
    plain = scales.fitted_scales(weight, levels)
    torch.testing.assert_close(scales.fitted_scales(weight, levels, torch.eye(32)), plain)
    assert plain[3] == 0
    slope = (weight * levels).sum(1) / levels.square().sum(1)
    torch.testing.assert_close(plain[:3], slope[:3])
    unseen = scales.fitted_scales(weight, levels, torch.zeros(32, 32))
    torch.testing.assert_close(unseen, plain)


def test_scales_do_not_depend_on_the_number_of_threads() -> None:
    hessian, before = correlated(320), torch.get_num_threads()
    weight, levels = noise(64, 320, seed=1), noise(64, 320, seed=2).round()
    found: list[torch.Tensor] = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(scales.fitted_scales(weight, levels, hessian))
    torch.set_num_threads(before)
    assert torch.equal(*found)
