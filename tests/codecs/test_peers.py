"""Other people's quantizers: listed and refused where absent, and their bits and values where not.

The bits are closed forms and need no library. What a library stores is decoded here a second time,
from its format alone.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import vqdq
from vqdq import codecs
from vqdq.codecs.base import Packed, WeightShape
from vqdq.codecs.peers import library
from vqdq.errors import UserError
from vqdq.models.packed_config import VqdqConfig
from vqdq.recipe import Component, Recipe, resolve

PEERS = {
    "bnb": "bitsandbytes",
    "gguf": "gguf",
    "hqq": "hqq",
    "quanto": "optimum-quanto",
    "sdnq": "sdnq",
}
LARGE = WeightShape(out_features=1280, in_features=1280)


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_installed", lambda _module: False)


@pytest.fixture
def present(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_installed", lambda _module: True)


def needs(name: str) -> None:
    if name not in codecs.available():
        pytest.skip(f"{codecs.get(name).missing()}")


def gaussian(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


@pytest.mark.usefixtures("absent")
@pytest.mark.parametrize(("name", "package"), PEERS.items())
def test_an_absent_peer_is_listed_with_what_installs_it(name: str, package: str) -> None:
    listed = {method.name: method for method in vqdq.methods()}
    assert not listed[name].available
    assert listed[name].install == f"pip install {package}"
    assert listed["trellis"].available
    assert listed["trellis"].install == ""
    assert name not in codecs.available()


@pytest.mark.usefixtures("absent")
@pytest.mark.parametrize(("name", "package"), PEERS.items())
def test_an_absent_peer_is_refused_with_what_installs_it(name: str, package: str) -> None:
    kind = codecs.get(name)
    shape = WeightShape(out_features=4, in_features=64)
    stored = Packed(codec=name, params=kind.settings(), shape=shape, tensors={})
    recipe = Recipe.from_json({"name": "r", "rules": [{"pattern": "*", "method": name}]})
    component = Component(name="unet", layers=(), tensors=())
    file = VqdqConfig(recipe={}, codecs=[{"method": name, "params": {}}], layers={})
    attempts = (
        lambda: vqdq.encode(torch.zeros(4, 64), name),
        stored.decode,
        lambda: resolve(recipe, component),
        file.expected,
    )
    for attempt in attempts:
        with pytest.raises(UserError, match="which is not installed") as fault:
            attempt()
        assert f"pip install {package}" in fault.value.remedy
        assert "pip install 'vqdq[peers]'" in fault.value.remedy


def test_a_missing_dependency_is_named_with_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_installed", lambda module: module != "termcolor")
    assert codecs.get("hqq").missing() == "pip install termcolor"
    assert codecs.get("bnb").missing() == ""


def test_a_library_that_cannot_be_imported_says_why() -> None:
    with pytest.raises(UserError, match="No module named 'vqdq_has_no_such_peer'") as fault:
        library.load("vqdq_has_no_such_peer")
    assert "vqdq[peers]" in fault.value.remedy


def test_listing_the_methods_imports_no_peer() -> None:
    code = (
        "import sys, vqdq; assert len(vqdq.methods()) >= 8; "
        "print({'hqq', 'gguf', 'optimum.quanto', 'bitsandbytes', 'sdnq'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


@pytest.mark.usefixtures("present")
@pytest.mark.parametrize(
    ("name", "values", "bits"),
    [
        ("hqq", {"bits": 2}, 2 + 32 / 64),
        ("hqq", {"bits": 3}, 3.2 + 32 / 64),  # ten codes in 32 bits
        ("hqq", {"bits": 4}, 4 + 32 / 64),
        ("hqq", {"bits": 8, "group_size": 128}, 8 + 32 / 128),
        ("gguf", {"kind": "Q4_0"}, 4 + 16 / 32),
        ("gguf", {"kind": "Q4_1"}, 4 + 32 / 32),
        ("gguf", {"kind": "Q5_0"}, 5 + 16 / 32),
        ("gguf", {"kind": "Q5_1"}, 5 + 32 / 32),
        ("gguf", {"kind": "Q8_0"}, 8 + 16 / 32),
        ("gguf", {"kind": "MXFP4"}, 4 + 8 / 32),
        ("quanto", {"bits": 2}, 2 + 32 / 128),
        ("quanto", {"bits": 4}, 4 + 32 / 128),
        ("quanto", {"bits": 8}, 8 + 16 / 1280),
        ("bnb", {}, 4 + 32 / 64 + 512 / 1280**2),  # and 16 levels in fp32
        ("bnb", {"double_quant": True}, 4 + 8 / 64 + 32 / 64 / 256 + 32 * (16 + 256 + 1) / 1280**2),
        ("sdnq", {"bits": 2}, 2 + 64 / 16),
        ("sdnq", {"bits": 3}, 3 + 64 / 32),
        ("sdnq", {"bits": 4}, 4 + 64 / 64),
        ("sdnq", {"bits": 4, "scales": "float16"}, 4 + 32 / 64),
        ("sdnq", {"bits": 4, "scales": "uint8"}, 4 + 16 / 64 + 4 * 32 / 1280**2),
        ("sdnq", {"bits": 5}, 5 + 64 / 128),
        ("sdnq", {"bits": 6}, 6 + 32 / 256),  # symmetric: no zero points
        ("sdnq", {"bits": 8}, 8 + 32 / 1280),
        ("sdnq", {"bits": 4, "codebook": True, "group_size": -1}, 4 + 32 * 16 / 1280),
        ("sdnq", {"bits": 4, "svd": True}, 4 + 64 / 128 + 16 * 32 * 2 / 1280),
    ],
)
def test_stored_bits_are_the_closed_form(name: str, values: dict[str, object], bits: float) -> None:
    assert codecs.create(name, **values).storage(LARGE).bits_per_weight == pytest.approx(bits)


@pytest.mark.usefixtures("present")
@pytest.mark.parametrize(
    ("name", "values", "size", "fact"),
    [
        ("gguf", {}, (8, 216), "a row of 216 weights"),
        ("hqq", {"bits": 4}, (1, 64), "128"),
        ("bnb", {}, (3, 5), "15 is odd"),
        ("quanto", {}, (1, 64), "a single group"),
        ("sdnq", {"bits": 3}, (2, 5), "10 weights"),
        ("sdnq", {"svd": True}, (8, 64), "32 rows"),
        ("sdnq", {"codebook": True, "scales": "uint8"}, (64, 64), "Lloyd"),
    ],
)
def test_shapes_that_a_peer_cannot_take_are_named(
    name: str, values: dict[str, object], size: tuple[int, int], fact: str
) -> None:
    with pytest.raises(UserError, match=fact) as fault:
        codecs.create(name, **values).check(WeightShape(out_features=size[0], in_features=size[1]))
    assert fault.value.remedy.endswith(".")


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("hqq", {"bits": 2}, 0.188),
        ("hqq", {"bits": 3}, 0.0334),
        ("hqq", {"bits": 4}, 0.0076),
        ("gguf", {"kind": "Q4_0"}, 0.00739),
        ("gguf", {"kind": "Q4_1"}, 0.00612),
        ("quanto", {"bits": 2}, 0.252),
        ("quanto", {"bits": 4}, 0.00998),
        ("bnb", {}, 0.00846),
        ("bnb", {"kind": "fp4"}, 0.0149),
        ("sdnq", {"bits": 2}, 0.107),
        ("sdnq", {"bits": 3}, 0.0282),
        ("sdnq", {"bits": 4}, 0.00804),
        ("sdnq", {"bits": 4, "codebook": True, "group_size": -1}, 0.0118),
    ],
)
def test_errors_are_those_of_the_libraries(
    name: str, values: dict[str, object], expected: float
) -> None:
    """Against each library called directly on N(0, 1), 1280 × 1280 (the published versions)."""
    needs(name)
    weight = gaussian(256, 1280)
    error = (weight - codecs.encode(weight, name, **values).decode()).square().mean()
    assert float(error) == pytest.approx(expected, rel=0.02)


def nibbles(stored: torch.Tensor, *, high_first: bool) -> tuple[torch.Tensor, torch.Tensor]:
    low, high = stored & 15, stored >> 4
    return (high, low) if high_first else (low, high)


def test_gguf_blocks_decode_by_their_format() -> None:
    needs("gguf")
    packed = codecs.encode(gaussian(8, 96), "gguf")
    blocks = packed.tensors["blocks"].reshape(-1, 18)
    scale = blocks[:, :2].contiguous().view(torch.float16).float()
    levels = torch.cat(nibbles(blocks[:, 2:], high_first=False), dim=1).float() - 8
    assert torch.equal((scale * levels).reshape(8, 96), packed.decode())


def test_hqq_codes_decode_by_their_format() -> None:
    needs("hqq")
    packed = codecs.encode(gaussian(8, 128), "hqq")
    codes = torch.cat(nibbles(packed.tensors["codes"], high_first=True), dim=0).float()
    scale, zero = (packed.tensors[key].float() for key in ("scales", "zero_points"))
    assert torch.allclose(((codes - zero) * scale).reshape(8, 128), packed.decode(), atol=1e-6)


def test_quanto_codes_decode_by_their_format() -> None:
    needs("quanto")
    packed = codecs.encode(gaussian(8, 256), "quanto")
    codes = torch.cat(nibbles(packed.tensors["codes"], high_first=False), dim=0).float()
    scale, shift = (packed.tensors[key].float() for key in ("scales", "shifts"))
    assert torch.allclose((codes * scale - shift).reshape(8, 256), packed.decode(), atol=1e-6)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bnb_codes_decode_by_their_format(kind: str) -> None:
    needs("bnb")
    packed = codecs.encode(gaussian(6, 70), "bnb", kind=kind)  # blocks run on over the rows
    codes = torch.stack(nibbles(packed.tensors["codes"], high_first=True), dim=1).reshape(-1)
    scale = packed.tensors["absmax"].repeat_interleave(64)[:420]
    values = packed.tensors["quant_map"][codes.long()] * scale
    assert torch.allclose(values.reshape(6, 70), packed.decode(), atol=1e-6)


def test_sdnq_codes_decode_by_their_format() -> None:
    needs("sdnq")
    packed = codecs.encode(gaussian(8, 256), "sdnq")
    codes = torch.stack(nibbles(packed.tensors["codes"], high_first=False), dim=-1)
    scale, zero = (packed.tensors[key] for key in ("scales", "zero_points"))
    values = codes.reshape(8, 4, 64).float() * scale + zero
    assert torch.allclose(values.reshape(8, 256), packed.decode(), atol=1e-6)


def test_the_same_seed_draws_the_same_svd() -> None:
    """SDNQ's SVD takes its random start from torch's global generator; here it must not."""
    needs("sdnq")
    state = torch.get_rng_state()
    first, second, other = (
        codecs.encode(gaussian(64, 64), "sdnq", svd=True, seed=seed) for seed in (3, 3, 4)
    )
    assert torch.equal(first.tensors["svd_up"], second.tensors["svd_up"])
    assert not torch.equal(first.tensors["svd_up"], other.tensors["svd_up"])
    assert torch.equal(state, torch.get_rng_state())
