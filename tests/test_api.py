"""The public face: what README and notebooks use, on the embedded model and its presets."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.quantizers import auto

import vqdq
from tests.models import tiny
from vqdq.models.checkpoint import verify
from vqdq.models.compressor import as_recipe, compress_folder
from vqdq.models.pipelines import presets_folder
from vqdq.models.sources import DEMO


def test_names() -> None:
    assert all(hasattr(vqdq, name) for name in vqdq.__all__)
    assert vqdq.__version__[0].isdigit()
    assert "vqdq" in auto.AUTO_QUANTIZER_MAPPING


def test_methods_are_those_of_the_registry() -> None:
    found = {method.name: method for method in vqdq.methods()}
    assert {"uniform", "additive", "trellis"} <= set(found)
    for method in found.values():
        assert method.title
        assert method.summary
        assert method.reference
        assert method.params or method.name == "half"


def test_encode() -> None:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    packed = vqdq.encode(weight, "uniform", bits=4, seed=0)
    assert isinstance(packed, vqdq.Packed)
    assert packed.decode().shape == (32, 64)
    held = sum(tensor.nbytes for tensor in packed.tensors.values())
    assert packed.storage.bits_per_weight == 8 * held / weight.numel()
    with pytest.raises(vqdq.UserError, match='Did you mean "uniform"'):
        vqdq.encode(weight, "unifrom")
    with pytest.raises(vqdq.UserError, match="Did you mean"):
        vqdq.encode(weight, "uniform", bit=4)
    with pytest.raises(vqdq.UserError, match="NaN"):
        vqdq.encode(torch.full((8, 8), torch.nan), "uniform")


@pytest.mark.parametrize("name", sorted(p.stem for p in presets_folder().glob("*.json")))
def test_every_preset_plans_the_demo(name: str) -> None:
    plan = vqdq.plan(DEMO, name)
    assert isinstance(plan, vqdq.Plan)
    assert plan.predicted_bytes < plan.reference_bytes
    target = float(re.findall(r"(\d+)(?=bit|a\d)", name)[0])
    assert target <= plan.bits_per_weight < target + 0.35


def test_faults_of_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(vqdq.UserError, match='Did you mean "rtn-4bit"'):
        vqdq.plan(DEMO, "rtn-4bits")
    path = tmp_path / "mine.json"
    path.write_text('{"rules": [{"pattern": "*", "methud": "uniform"}]}')
    with pytest.raises(vqdq.UserError, match='Did you mean "method"'):
        vqdq.plan(DEMO, path)


def test_a_pipeline_is_planned_like_its_folder(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path / "tiny")
    live, stored = (vqdq.plan(model, "rtn-4bit") for model in (vqdq.load(folder), folder))
    assert live.layers == stored.layers
    assert live.tensors == stored.tensors
    assert live.predicted_bytes == stored.predicted_bytes


@pytest.mark.slow
def test_the_demo_end_to_end(tmp_path: Path) -> None:
    """The issue's main promise, on the embedded model: same bits on disk and in memory."""
    done = compress_folder(DEMO, as_recipe("rtn-4bit"), tmp_path / "small")
    weights = done.output / "unet/diffusion_pytorch_model.safetensors"
    assert done.predicted_bytes == done.measured_bytes == weights.stat().st_size
    assert verify(done.output).ok
    small = vqdq.compress(vqdq.load(DEMO), "rtn-4bit")
    opened = DiffusionPipeline.from_pretrained(done.output)
    drawn = tiny.draw(opened, prompt="a large red circle")
    assert torch.equal(drawn, tiny.draw(small, prompt="a large red circle"))
    assert drawn.isfinite().all()
    shutil.rmtree(done.output)


def test_importing_loads_no_studio_and_few_models() -> None:
    """`import vqdq` must stay quick: it brings torch and diffusers' tables, no pipelines."""
    code = (
        "import sys, vqdq; heavy = ('gradio', 'matplotlib', 'diffusers.pipelines.stable_diffusion',"
        " 'transformers.models.clip'); print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
