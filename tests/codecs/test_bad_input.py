"""Input that nobody should give, over the whole registry: a correct result, or what to do."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vqdq import codecs
from vqdq.codecs.base import Codec, InputStats, Packed
from vqdq.codecs.uniform import UniformCodec, UniformParams
from vqdq.errors import UserError
from vqdq.params import describe

QUICK = {"state_bits": 8, "rounds": 1, "beam": 2}  # what only costs time here
USABLE = codecs.available()
CALIBRATED = tuple(name for name in USABLE if codecs.get(name).uses_hessian)
ROWS, WIDTH = 32, 64


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moments(width: int, samples: int, seed: int = 1) -> torch.Tensor:
    """E[x xᵀ] of correlated inputs; singular below `width` samples."""
    inputs = noise(samples, width, seed=seed)
    inputs = inputs + 0.7 * inputs.roll(1, dims=1)
    return inputs.T @ inputs / samples


def create(name: str) -> Codec[object]:
    known = {info.name for info in describe(codecs.get(name).settings)}
    return codecs.create(name, **{key: value for key, value in QUICK.items() if key in known})


def encode(
    name: str, weight: torch.Tensor, hessian: torch.Tensor | None = None, damping: float = 0.1
) -> Packed:
    """Encodes with quick settings; a codec that needs a Hessian sees uncorrelated inputs."""
    codec = create(name)
    if hessian is None and codec.needs_hessian:
        hessian = torch.eye(weight.shape[1])
    stats = None if hessian is None else InputStats(hessian=hessian, damping=damping)
    return codec.encode(weight, stats=stats)


def attempt(name: str, weight: torch.Tensor, hessian: torch.Tensor | None) -> Packed | UserError:
    try:
        return encode(name, weight, hessian)
    except UserError as fault:
        return fault


def relative_error(weight: torch.Tensor, decoded: torch.Tensor) -> float:
    assert decoded.shape == weight.shape
    assert bool(torch.isfinite(decoded).all())
    power = weight.double().square().sum().clamp_min(1e-300)
    return float((weight.double() - decoded.double()).square().sum() / power)


def loss(weight: torch.Tensor, decoded: torch.Tensor, hessian: torch.Tensor) -> float:
    error = (weight - decoded).double()
    return float(((error @ hessian.double()) * error).sum())


def test_a_method_that_is_not_installed_says_how_to_install_it() -> None:
    for name in set(codecs.names()) - set(USABLE):
        with pytest.raises(UserError, match="not installed") as fault:
            encode(name, noise(ROWS, WIDTH))
        assert "pip install" in fault.value.remedy


@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.parametrize("name", USABLE)
def test_odd_weights_are_encoded_or_refused_with_a_remedy(name: str, data: st.DataObject) -> None:
    """One row, one column, any width, zeros, constants, outliers, denormals and huge values."""
    rows = data.draw(st.sampled_from([1, 2, 5, 24]), label="rows")
    width = data.draw(st.sampled_from([1, 2, 7, 16, 33, 64, 100]), label="width")
    weight = noise(rows, width)
    kind = data.draw(st.sampled_from(["zero", "constant", "row", "outlier", "plain"]), label="kind")
    if kind in ("zero", "constant"):
        weight = torch.full_like(weight, 0.0 if kind == "zero" else -0.3)
    elif kind == "row":
        weight[0] = 0.0
    elif kind == "outlier":
        weight[-1, -1] = 1e3
    weight = weight * data.draw(st.sampled_from([1e-44, 1e-30, 1e-6, 1.0, 1e3, 1e30]), label="size")
    hessian = None
    if name in CALIBRATED and data.draw(st.booleans(), label="calibrated"):
        hessian = moments(width, data.draw(st.sampled_from([1, 3, 200]), label="samples"))
    packed = attempt(name, weight, hessian)
    if isinstance(packed, UserError):
        assert packed.what.endswith(".")
        assert packed.remedy.endswith(".")
        return
    error = relative_error(weight, packed.decode())
    assert hessian is not None or error <= 1.0 + 1e-6
    assert error < 10.0  # under a singular Hessian a weight may move where no input looks


@pytest.mark.parametrize("name", USABLE)
@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_damaged_weights_are_refused(name: str, bad: float) -> None:
    weight = noise(ROWS, WIDTH)
    weight[0] = bad
    with pytest.raises(UserError, match="64 of 2048 weights are NaN or infinite"):
        encode(name, weight)


@pytest.mark.parametrize("name", USABLE)
@pytest.mark.parametrize("shape", [(0, 8), (8, 0), (8,), (2, 3, 4)])
def test_what_is_no_matrix_is_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="not a matrix") as fault:
        create(name).encode(torch.zeros(shape))
    assert "at least one row and one column" in fault.value.remedy


@pytest.mark.parametrize("name", USABLE)
def test_settings_out_of_range_name_the_range(name: str) -> None:
    for info in describe(codecs.get(name).settings):
        if info.high is None:
            continue
        beyond = info.kind(info.high + 1)
        with pytest.raises(UserError, match=info.name) as fault:
            codecs.encode(noise(ROWS, WIDTH), name, **{info.name: beyond})
        assert fault.value.remedy


def test_more_bits_than_the_codec_has_are_refused() -> None:
    for name, bits in (("uniform", 9), ("gptq", 1), ("lloyd_max", 7), ("trellis", 9)):
        with pytest.raises(UserError, match="bits") as fault:
            codecs.encode(noise(ROWS, WIDTH), name, bits=bits)
        assert any(character.isdigit() for character in fault.value.remedy)


@pytest.mark.parametrize("name", CALIBRATED)
@pytest.mark.parametrize("samples", [1, 5])
def test_a_singular_hessian_works_with_damping(name: str, samples: int) -> None:
    weight, hessian = noise(ROWS, WIDTH), moments(WIDTH, samples)
    decoded = encode(name, weight, hessian).decode()
    assert relative_error(weight, decoded) < 2.0
    assert loss(weight, decoded, hessian) < loss(weight, encode(name, weight).decode(), hessian)


@pytest.mark.parametrize("name", CALIBRATED)
def test_a_singular_hessian_without_damping_names_the_remedy(name: str) -> None:
    with pytest.raises(UserError, match="singular") as fault:
        encode(name, noise(ROWS, WIDTH), moments(WIDTH, 5), damping=0.0)
    assert "damping" in fault.value.remedy


@pytest.mark.parametrize("name", CALIBRATED)
@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_inputs_that_are_never_seen_change_nothing(name: str, damping: float) -> None:
    """A zero Hessian: the weight is encoded about as well as without one."""
    weight = noise(ROWS, WIDTH)
    decoded = encode(name, weight, torch.zeros(WIDTH, WIDTH), damping).decode()
    plain = relative_error(weight, encode(name, weight).decode())
    assert relative_error(weight, decoded) == pytest.approx(plain, rel=0.25)


@pytest.mark.parametrize("name", CALIBRATED)
def test_dead_channels_do_not_hurt_the_others(name: str) -> None:
    weight, hessian = noise(ROWS, WIDTH), moments(WIDTH, 300)
    hessian[:8] = 0.0
    hessian[:, :8] = 0.0
    decoded = encode(name, weight, hessian).decode()
    assert relative_error(weight, decoded) < 1.0
    assert loss(weight, decoded, hessian) < loss(weight, encode(name, weight).decode(), hessian)


@pytest.mark.parametrize("name", CALIBRATED)
@pytest.mark.parametrize("size", [(WIDTH, 32), (32, 32), (WIDTH,)])
def test_a_hessian_of_the_wrong_size_is_refused(name: str, size: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="the weight has 64 columns") as fault:
        encode(name, noise(ROWS, WIDTH), torch.ones(size))
    assert "[64, 64]" in fault.value.remedy


@pytest.mark.parametrize("name", CALIBRATED)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_damaged_hessians_are_refused(name: str, bad: float) -> None:
    hessian = moments(WIDTH, 300)
    hessian[5, 5] = bad
    with pytest.raises(UserError, match="NaN, infinite or negative"):
        encode(name, noise(ROWS, WIDTH), hessian)


@pytest.mark.parametrize("name", CALIBRATED)
def test_rounding_asymmetry_is_taken_and_inputs_instead_of_moments_are_not(name: str) -> None:
    weight, hessian = noise(ROWS, WIDTH), moments(WIDTH, 300)
    tilted = hessian + 1e-6 * noise(WIDTH, WIDTH, seed=3)
    found, expected = (encode(name, weight, item).decode() for item in (tilted, hessian))
    assert loss(weight, found, hessian) == pytest.approx(loss(weight, expected, hessian), rel=0.05)
    with pytest.raises(UserError, match="not symmetric") as fault:
        encode(name, weight, noise(WIDTH, WIDTH).abs())
    assert "E[x xᵀ]" in fault.value.remedy


@pytest.mark.parametrize("name", CALIBRATED)
def test_the_unit_of_the_hessian_does_not_matter(name: str) -> None:
    """Inputs twice as large are the same problem, to the byte: scaling by 2^k is exact."""
    weight, hessian = noise(ROWS, WIDTH), moments(WIDTH, 300)
    first, second = encode(name, weight, hessian), encode(name, weight, 2.0**20 * hessian)
    for key, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[key])


@pytest.mark.parametrize("name", CALIBRATED)
@pytest.mark.parametrize("shape", [(1, WIDTH), (WIDTH, 1), (1, 1)])
def test_thin_weights_take_a_hessian_or_say_why_not(name: str, shape: tuple[int, int]) -> None:
    weight = noise(*shape)
    packed = attempt(name, weight, moments(shape[1], 100))
    if isinstance(packed, UserError):
        assert packed.remedy.endswith(".")
    else:
        assert relative_error(weight, packed.decode()) < 1.0


@pytest.mark.parametrize("name", [name for name in USABLE if codecs.get(name).needs_hessian])
def test_a_codec_that_needs_a_hessian_says_so(name: str) -> None:
    with pytest.raises(UserError, match="needs the Hessian") as fault:
        codecs.encode(noise(ROWS, WIDTH), name)
    assert "calibration" in fault.value.remedy


class Blind(UniformCodec):
    """A codec that works from the weight alone; not registered."""

    name = "blind"
    uses_hessian = False


def test_a_hessian_is_not_ignored_in_silence() -> None:
    codec = Blind(UniformParams())
    with pytest.raises(UserError, match="Hessian was given"):
        codec.encode(noise(8, 8), stats=InputStats(hessian=torch.eye(8)))
    codec.encode(noise(8, 8), stats=InputStats())
