"""What every registered codec promises, for any shape: exact storage, same bytes, finite values."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vqdq import codecs
from vqdq.codecs.base import Codec, InputStats, Packed, WeightShape
from vqdq.codecs.peers.library import PeerCodec
from vqdq.errors import UserError
from vqdq.params import describe
from vqdq.tensors import TensorSpec

STORED = {torch.int8, torch.uint8, torch.float16, torch.int32}
PEERS_STORE = STORED | {torch.float32}  # what they write is what they pay
SLOW = {"rounds": (0, 1), "state_bits": (8, 10), "beam": (1, 3)}  # what only costs time here


def variants(name: str) -> list[dict[str, object]]:
    """Every setting of a codec varied alone and all together with each of its own values."""
    infos = describe(codecs.get(name).settings)
    if not infos:
        return [{}]
    values = [SLOW.get(info.name) or _values(info) for info in infos]
    longest = max(len(choices) for choices in values)
    cycled = [list(itertools.islice(itertools.cycle(choices), longest * 3)) for choices in values]
    for index, column in enumerate(cycled):  # shift the columns so that combinations differ
        cycled[index] = column[index:] + column[:index]
    return [
        dict(zip([info.name for info in infos], row, strict=True))
        for row in zip(*cycled, strict=True)
    ]


def _values(info: object) -> tuple[object, ...]:
    kind, choices = getattr(info, "kind"), getattr(info, "choices")  # noqa: B009 - typed loosely
    if kind is bool:
        return (False, True)
    if choices:
        return tuple(choices)
    low, high = getattr(info, "low"), getattr(info, "high")  # noqa: B009
    return (low, high) if kind is float else tuple(range(int(low), int(high) + 1))


VARIANTS = [(name, values) for name in codecs.available() for values in variants(name)]


def moments(width: int) -> InputStats:
    """Inputs that are correlated, with twice as many samples as channels."""
    inputs = torch.randn(2 * width, width, generator=torch.Generator().manual_seed(width))
    inputs += inputs.roll(1, dims=1)
    return InputStats(hessian=inputs.T @ inputs / len(inputs))


def encode(codec: Codec[object], weight: torch.Tensor, taps: int, seed: int = 0) -> Packed:
    stats = moments(weight.shape[1]) if codec.needs_hessian else None
    generator = torch.Generator().manual_seed(seed)
    return codec.encode(weight, taps=taps, stats=stats, generator=generator)


def encoded(weight: torch.Tensor, name: str, seed: int = 0) -> Packed:
    """`codecs.encode` with the defaults of the codec, and a Hessian where it needs one."""
    return encode(codecs.create(name), weight, 1, seed)


def refusal(codec: Codec[object], shape: WeightShape) -> UserError | None:
    try:
        codec.check(shape)
    except UserError as fault:
        return fault
    return None


def assert_promises(codec: Codec[object], weight: torch.Tensor, taps: int) -> Packed | None:
    """Checks one weight; None when the codec says clearly that it cannot take the shape."""
    shape = WeightShape(out_features=weight.shape[0], in_features=weight.shape[1], taps=taps)
    fault = refusal(codec, shape)
    if fault is not None:
        assert fault.what.endswith(".")
        assert fault.remedy.endswith(".")
        with pytest.raises(UserError):
            encode(codec, weight, taps)
        return None
    packed = encode(codec, weight, taps)
    measured = {TensorSpec.of(name, tensor) for name, tensor in packed.tensors.items()}
    assert measured == set(codec.layout(shape))
    assert packed.storage.total_bytes == codec.storage(shape).total_bytes
    allowed = PEERS_STORE if isinstance(codec, PeerCodec) else STORED
    assert {tensor.dtype for tensor in packed.tensors.values()} <= allowed
    decoded = packed.decode()
    assert decoded.shape == weight.shape
    assert decoded.dtype == torch.float32
    assert bool(torch.isfinite(decoded).all())
    return packed


@pytest.mark.parametrize(("name", "values"), VARIANTS)
def test_every_setting_keeps_the_promises(name: str, values: dict[str, object]) -> None:
    weight = torch.randn(24, 9 * 32, generator=torch.Generator().manual_seed(0)) * 0.02
    assert_promises(codecs.create(name, **values), weight, 9)


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.parametrize("name", codecs.available())
def test_every_shape_keeps_the_promises(name: str, data: st.DataObject) -> None:
    values = data.draw(st.sampled_from(variants(name)))
    rows = data.draw(st.integers(1, 40))
    taps = data.draw(st.sampled_from([1, 1, 4, 9]))
    channels = data.draw(st.one_of(st.integers(1, 40), st.sampled_from([16, 48, 64, 96])))
    scale = data.draw(st.sampled_from([1e-40, 1e-7, 0.02, 1.0, 1000.0]))
    weight = torch.randn(rows, taps * channels, generator=torch.Generator().manual_seed(rows))
    assert_promises(codecs.create(name, **values), weight * scale, taps)


@pytest.mark.parametrize("name", codecs.available())
def test_same_seed_same_bytes(name: str) -> None:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
    first, second = encoded(weight, name, seed=7), encoded(weight, name, seed=7)
    for key, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[key])
    assert torch.equal(first.decode(), second.decode())


@pytest.mark.parametrize("name", codecs.available())
def test_a_hessian_changes_the_codes_and_not_the_layout(name: str) -> None:
    codec = codecs.create(name)
    if not codec.uses_hessian:
        pytest.skip("works from the weight alone")
    weight = torch.randn(48, 96, generator=torch.Generator().manual_seed(1))
    stats = moments(96)
    first, second = codec.encode(weight, stats=stats), codec.encode(weight, stats=stats)
    assert first.storage.total_bytes == codec.storage(first.shape).total_bytes
    assert {TensorSpec.of(*item) for item in first.tensors.items()} == set(
        codec.layout(first.shape)
    )
    for key, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[key])
    if not codec.needs_hessian:
        assert not torch.equal(first.decode(), encoded(weight, name).decode())


@pytest.mark.parametrize("name", codecs.available())
def test_zeros_decode_to_zeros(name: str) -> None:
    assert not encoded(torch.zeros(16, 64), name).decode().any()
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(2))
    weight[3] = 0.0
    decoded = encoded(weight, name).decode()
    assert not decoded[3].any()
    assert decoded[2].any()


@pytest.mark.parametrize("name", codecs.available())
def test_a_constant_row_keeps_its_size(name: str) -> None:
    decoded = encoded(torch.full((16, 64), 0.5), name).decode()
    assert abs(float(decoded.mean()) - 0.5) < 0.1


@pytest.mark.parametrize("name", codecs.available())
def test_denormals_do_not_become_nan(name: str) -> None:
    assert bool(torch.isfinite(encoded(torch.full((16, 64), 1e-42), name).decode()).all())


@pytest.mark.parametrize("name", codecs.available())
def test_a_scale_beyond_fp16_is_named(name: str) -> None:
    """Unless the method stores its scales in 32 bits: then it simply works."""
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(3)) * 1e30
    wide = any(spec.dtype == torch.float32 for spec in layout(name, weight))
    if wide:
        unit = encoded(weight, name).decode().double() / 1e30
        assert float((unit - weight.double() / 1e30).square().mean()) < 0.02
        return
    with pytest.raises(UserError, match="does not fit in 16 bits"):
        encoded(weight, name)


def layout(name: str, weight: torch.Tensor) -> tuple[TensorSpec, ...]:
    shape = WeightShape(out_features=weight.shape[0], in_features=weight.shape[1])
    return codecs.create(name).layout(shape)


@pytest.mark.parametrize("name", codecs.available())
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_damaged_weights_are_refused(name: str, bad: float) -> None:
    weight = torch.zeros(16, 64)
    weight[2, 3] = bad
    with pytest.raises(UserError, match="1 of 1024 weights are NaN or infinite"):
        encoded(weight, name)


@pytest.mark.parametrize("name", codecs.available())
def test_half_precision_and_other_strides_are_taken(name: str) -> None:
    weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(4)).bfloat16().T
    expected = encoded(weight.float().contiguous(), name).decode()
    assert torch.equal(encoded(weight, name).decode(), expected)


@pytest.mark.parametrize("name", codecs.available())
def test_no_codec_beats_the_rate_distortion_bound(name: str) -> None:
    """On Gaussian data no code of R bits has less error than 2^(-2R) (Shannon)."""
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(5))
    packed = encoded(weight, name)
    error = float((packed.decode() - weight).square().mean() / weight.square().mean())
    assert 2 ** (-2 * packed.storage.bits_per_weight) < error < 1.0


@pytest.mark.parametrize("name", codecs.names())
def test_every_codec_explains_itself(name: str) -> None:
    kind = codecs.get(name)
    assert kind.title
    assert kind.summary.endswith(".")
    assert "arXiv" in kind.reference or "github.com" in kind.reference
    assert all(info.label for info in describe(kind.settings))
