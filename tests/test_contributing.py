"""The worked example of the contributor's guide is a real codec: it is taken from there and run."""

from __future__ import annotations

import math
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import vqdq
from vqdq import codecs
from vqdq.codecs import WeightShape

GUIDE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def _block(label: str) -> str:
    found = re.search(rf"```python {label}\n(.*?)```", GUIDE, re.DOTALL)
    assert found is not None, f"CONTRIBUTING.md has no block ```python {label}"
    return found.group(1)


@pytest.fixture
def sign_codec(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    known = codecs.names()
    module = types.ModuleType("vqdq_example_codec")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(_block("codec"), "CONTRIBUTING.md", "exec"), module.__dict__)
    assert codecs.names() == tuple(sorted([*known, "sign"]))
    yield
    codecs._registry.pop("sign")


@pytest.mark.usefixtures("sign_codec")
def test_the_example_prints_what_the_guide_says(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(_block("use"), "CONTRIBUTING.md", "exec"), {})
    printed = capsys.readouterr().out.strip()
    assert f"`{printed}`" in GUIDE.replace("\n", " ")


@pytest.mark.usefixtures("sign_codec")
def test_the_example_keeps_the_contract() -> None:
    weight = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(1))
    packed = vqdq.encode(weight, "sign")
    promised = codecs.create("sign").storage(WeightShape(out_features=1024, in_features=1024))
    assert packed.storage == promised
    error = (weight - packed.decode()).square().mean().item()
    assert error == pytest.approx(1 - 2 / math.pi, rel=0.01)  # Lloyd-Max at one bit
