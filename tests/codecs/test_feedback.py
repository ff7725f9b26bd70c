"""Error feedback against closed forms: the gain, the loss, and rounding without correlations."""

from __future__ import annotations

import pytest
import torch

from vqdq import codecs
from vqdq.codecs import feedback
from vqdq.codecs.base import InputStats, Packed
from vqdq.errors import UserError

SCALAR: dict[str, dict[str, object]] = {
    "uniform": {"bits": 3},
    "gptq": {"bits": 3},
    "lloyd_max": {"bits": 3},
    "nf4": {},
}
WIDTH = 256


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def power_law(width: int = WIDTH, exponent: float = 1.0) -> torch.Tensor:
    """Returns a covariance with eigenvalues i^-exponent in a random basis, mean diagonal 1."""
    basis, _ = torch.linalg.qr(noise(width, width, seed=width).double())
    values = torch.arange(1, width + 1, dtype=torch.float64) ** -exponent
    covariance = basis @ (values[:, None] * basis.T) / values.mean()
    return ((covariance + covariance.T) / 2).float()


def predicted(name: str, hessian: torch.Tensor, **params: object) -> float:
    """The closed form for the order of columns that the codec takes."""
    if name != "gptq":
        size = 0 if name == "nf4" else int(str(params.get("group_size", 0)))
        order = feedback.strongest_first(hessian, size)
        hessian = hessian[order][:, order]
    return feedback.factor(hessian, 0.01).predicted_gain


def loss(weight: torch.Tensor, decoded: torch.Tensor, hessian: torch.Tensor) -> float:
    error = (weight - decoded).double()
    return float(((error @ hessian.double()) * error).sum())


def with_hessian(
    weight: torch.Tensor, name: str, hessian: torch.Tensor, damping: float = 0.01, **params: object
) -> Packed:
    stats = InputStats(hessian=hessian, damping=damping)
    return codecs.create(name, **params).encode(weight, stats=stats)


def plain(weight: torch.Tensor, name: str, **params: object) -> Packed:
    """Each weight rounded by itself; GPTQ's grids with nothing to feed back."""
    if name == "gptq":
        return with_hessian(weight, name, torch.eye(weight.shape[1]), 0.0, **params)
    return codecs.create(name, **params).encode(weight)


@pytest.mark.parametrize("name", SCALAR)
def test_the_gain_is_the_closed_form(name: str) -> None:
    """mean(R_jj²) / mean(H_jj): 1 % of damping, 2048 rows."""
    weight, hessian = noise(2048, WIDTH), power_law()
    before = loss(weight, plain(weight, name, **SCALAR[name]).decode(), hessian)
    after = loss(weight, with_hessian(weight, name, hessian, **SCALAR[name]).decode(), hessian)
    assert after / before == pytest.approx(predicted(name, hessian), rel=0.03)


@pytest.mark.parametrize("name", SCALAR)
def test_without_correlations_it_is_plain_rounding(name: str) -> None:
    weight = noise(48, 300)
    first = plain(weight, name, **SCALAR[name])
    second = with_hessian(weight, name, 3.0 * torch.eye(300), 0.1, **SCALAR[name])
    assert first.tensors.keys() == second.tensors.keys()
    for key, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[key])


def test_the_loss_is_the_weighted_error_of_the_targets() -> None:
    """tr(Δ (H + λI) Δᵀ) = Σ_j R_jj² ‖e_j‖², e_j computed here from the decoded weight alone."""
    weight, hessian = noise(64, WIDTH), power_law()
    decoded = with_hessian(weight, "gptq", hessian, bits=3).decode()
    factor = feedback.factor(hessian, 0.01)
    lost = (weight - decoded).double()
    unit = factor.unit.double()
    assert torch.equal(unit.triu(), unit)
    assert torch.equal(unit.diagonal(), torch.ones(WIDTH, dtype=torch.float64))
    targets = weight.double() + lost @ unit.triu(1)
    errors = targets - decoded.double()
    damped = hessian.double() + 0.01 * factor.power * torch.eye(WIDTH, dtype=torch.float64)
    expected = float((errors.square() * factor.gains).sum())
    assert loss(weight, decoded, damped) == pytest.approx(expected, rel=1e-5)


def test_every_weight_went_to_the_level_nearest_its_target() -> None:
    weight, hessian = noise(64, WIDTH), power_law()
    packed = with_hessian(weight, "gptq", hessian, bits=3, symmetric=True)
    decoded = packed.decode().double()
    unit = feedback.factor(hessian, 0.01).unit.double()
    targets = weight.double() + (weight.double() - decoded) @ unit.triu(1)
    steps = packed.tensors["scales"].double()
    levels = (torch.arange(8) - 3.5).double() * steps  # [rows, 8]
    nearest = (targets[:, :, None] - levels[:, None, :]).abs().argmin(dim=2)
    found = levels.gather(1, nearest)
    assert float((found == decoded).double().mean()) > 0.9999  # float32 sums: ties to 1e-5


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("uniform", {"bits": 3, "group_size": 64}),
        ("uniform", {"bits": 4, "group_size": 16, "symmetric": False}),
        ("lloyd_max", {"bits": 3, "group_size": 64}),
        ("nf4", {"group_size": 32}),
    ],
)
def test_groups_keep_the_gain(name: str, params: dict[str, object]) -> None:
    """Least-error groups see what feedback made of the weights: fixed ones lose 3 to 7 %."""
    weight, hessian = noise(1024, WIDTH), power_law()
    before = loss(weight, plain(weight, name, **params).decode(), hessian)
    after = loss(weight, with_hessian(weight, name, hessian, **params).decode(), hessian)
    assert after / before == pytest.approx(predicted(name, hessian, **params), rel=0.03)


def test_strong_inputs_first_helps_uneven_ones() -> None:
    weight, spread = noise(512, WIDTH), noise(WIDTH, seed=9).mul(0.7).exp()
    hessian = power_law() * spread[:, None] * spread
    found = [
        loss(weight, with_hessian(weight, "gptq", hessian, act_order=order).decode(), hessian)
        for order in (False, True)
    ]
    assert found[1] < 0.9 * found[0]


def test_strongest_first_keeps_groups_together() -> None:
    strength = torch.tensor([1.0, 2.0, 5.0, 1.0, 4.0, 4.0, 9.0])
    hessian = strength.diag()
    assert feedback.strongest_first(hessian).tolist() == [6, 2, 4, 5, 1, 0, 3]
    assert feedback.strongest_first(hessian, 2).tolist() == [4, 5, 2, 3, 1, 0, 6]
    assert feedback.strongest_first(torch.eye(4)).tolist() == [0, 1, 2, 3]


def test_compensated_weights_lose_nothing_more() -> None:
    """Taken as they are, they leave the loss that the rounded columns before them caused."""
    weight, hessian = noise(32, 20, seed=3), power_law(32)
    factor = feedback.factor(hessian, 0.01)
    errors = 0.1 * noise(12, 20, seed=4)
    targets = weight[12:] + factor.unit[:12, 12:].T @ errors
    best = feedback.compensated(weight[12:], targets, factor.unit[12:, 12:])
    delta = torch.cat((errors, weight[12:] - best)).double().T
    damped = hessian.double() + 0.01 * factor.power * torch.eye(32, dtype=torch.float64)
    left = float(((delta @ damped) * delta).sum())
    solved = torch.linalg.solve(damped[12:, 12:], -damped[12:, :12] @ errors.double())
    optimum = torch.cat((errors.double(), solved)).T
    assert left == pytest.approx(float(((optimum @ damped) * optimum).sum()), rel=1e-5)


@pytest.mark.parametrize("name", SCALAR)
def test_threads_do_not_change_the_bytes(name: str) -> None:
    weight, hessian, before = noise(400, 320), power_law(320), torch.get_num_threads()
    found: list[Packed] = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(with_hessian(weight, name, hessian, **SCALAR[name]))
    torch.set_num_threads(before)
    for key, tensor in found[0].tensors.items():
        assert torch.equal(tensor, found[1].tensors[key])


def test_a_singular_hessian_names_the_remedy() -> None:
    inputs = noise(5, 32)
    hessian = inputs.T @ inputs / 5
    with pytest.raises(UserError, match="singular") as fault:
        with_hessian(noise(8, 32), "uniform", hessian, damping=0.0)
    assert "damping" in fault.value.remedy
    assert bool(torch.isfinite(with_hessian(noise(8, 32), "uniform", hessian).decode()).all())
