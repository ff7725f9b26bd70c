"""`import vqdq` costs nothing, and diffusers knows the format from the moment it is imported."""

from __future__ import annotations

import subprocess
import sys

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


FIRST = """
import os, sys
import torch, transformers  # not ours, and not what the plug-in waits for: once for all of them
assert "diffusers" not in sys.modules
for name in ("packed_config", "checkpoint", "hub", "sources"):
    child = os.fork()
    if child == 0:
        __import__(f"vqdq.models.{name}")
        import vqdq.models.hub as hub
        os._exit(0 if hub.VqdqQuantizer.__name__ == "VqdqQuantizer" else 3)
    assert os.waitpid(child, 0)[1] == 0, name
"""


def test_any_module_of_the_models_can_be_imported_first() -> None:
    done = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
