"""`import vqdq` costs nothing, and diffusers knows the format from the moment it is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

import vqdq

CODE = """
import sys
import vqdq
assert "torch" not in sys.modules
from diffusers.quantizers import auto
assert "vqdq" in auto.AUTO_QUANTIZER_MAPPING and "vqdq" in auto.AUTO_QUANTIZATION_CONFIG_MAPPING
from vqdq.models import hub
assert auto.AUTO_QUANTIZER_MAPPING["vqdq"] is hub.VqdqQuantizer
"""


def test_diffusers_is_taught_when_it_is_imported():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there():
    for name in vqdq.__all__:
        assert getattr(vqdq, name) is not None
    assert set(vqdq.__all__) <= set(dir(vqdq))
    assert not hasattr(vqdq, "nothing")


@pytest.mark.parametrize("name", ["packed_config", "checkpoint", "hub", "sources"])
def test_any_module_of_the_models_can_be_imported_first(name: str) -> None:
    code = f"import vqdq.models.{name}, vqdq.models.hub as hub; print(hub.VqdqQuantizer.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "VqdqQuantizer"
