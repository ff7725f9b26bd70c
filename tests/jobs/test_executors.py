"""The jobs themselves on a tiny model: same start, lossless pictures, records that open again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.jobs.conftest import wait_state
from tests.models import tiny
from vqdq.errors import Cancelled
from vqdq.jobs import compare, compress, generate
from vqdq.jobs.draw import CHUNK
from vqdq.jobs.requests import CompareRequest, CompressRequest, GenerateRequest
from vqdq.jobs.store import Workspace
from vqdq.jobs.warm import WarmPipelines
from vqdq.jobs.worker import Worker
from vqdq.progress import Event
from vqdq.recipe import Recipe

RECIPE = Recipe.from_json(
    {"name": "two", "rules": [{"pattern": "*attn*", "method": "uniform", "params": {"bits": 2}}]}
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs")
    tiny.folder(folder / "tiny")
    asked = CompressRequest(
        model=str(folder / "tiny"), recipe=RECIPE, name="small", output=str(folder / "small")
    )
    result = compress.execute(asked)
    assert result["predicted_bytes"] == result["measured_bytes"]
    return folder


@pytest.fixture(scope="module")
def cache():
    return WarmPipelines()


def compared(place, *variants, **values):
    names = tuple(str(place / name) for name in variants)
    return CompareRequest(
        model=str(place / "tiny"), variants=names, prompt="a red circle", steps=2, seed=1, **values
    )


def test_compare_changes_the_model_only(place, cache, tmp_path):
    events: list[Event] = []
    asked = compared(place, "small", "tiny")
    result = compare.execute(asked, tmp_path, report=events.append, cache=cache)
    json.dumps(result, allow_nan=False)
    assert result["certificate"]["same_start"]
    assert result["certificate"]["same_components"]
    assert result["certificate"]["problems"] == []
    small, same = result["variants"]
    assert (same["psnr"], same["ssim"], same["changed"]) == (None, 1.0, 0.0)
    assert 0 < small["psnr"] < 100
    assert small["bits_per_weight"] < 3 < result["reference"]["bits_per_weight"] == 16
    assert small["bytes"] < small["reference_bytes"]
    assert "demo" not in str(small["verdict"])
    assert small["verdict_reason"]
    for picture in (result["reference"], small, same):
        with Image.open(tmp_path / picture["image"]) as image:
            chunk = json.loads(image.text[CHUNK])
            assert image.format == "PNG"
            assert (chunk["prompt"], chunk["seed"], chunk["steps"]) == ("a red circle", 1, 2)
    with Image.open(tmp_path / same["error_map"]) as image:
        assert np.asarray(image).max() == 0
    previews = [Path(event.preview).name for event in events if event.preview]
    assert previews == ["reference.png", "1-small.png", "2-tiny.png"]
    steps = [event for event in events if event.stage == "draw"]
    assert [event.done for event in steps] == sorted(event.done for event in steps)
    assert (steps[-1].done, steps[-1].total) == (6, 6)


def test_a_picture_is_the_same_again(place, cache, tmp_path):
    asked = GenerateRequest(model=str(place / "small"), prompt="a", steps=2, seed=9)
    first = generate.execute(asked, tmp_path, cache=cache, name="a.png")
    second = generate.execute(asked, tmp_path, cache=cache, name="b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert first["initial_latent_sha256"] == second["initial_latent_sha256"]
    assert second["load_seconds"] == 0.0


def test_another_model_is_noticed(place, cache, tmp_path):
    tiny.folder(tmp_path / "other", seed=1)
    asked = CompareRequest(
        model=str(place / "tiny"), variants=(str(tmp_path / "other"),), prompt="a", steps=1
    )
    result = compare.execute(asked, tmp_path, cache=cache)
    assert not result["certificate"]["same_components"]
    assert any("text_encoder" in problem for problem in result["certificate"]["problems"])


def test_cancel_leaves_no_half_picture(place, cache, tmp_path):
    def stop(event: Event) -> None:
        if event.stage == "draw" and event.done == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        compare.execute(compared(place, "small"), tmp_path, report=stop, cache=cache)
    assert [item.name for item in tmp_path.iterdir()] == ["reference.png"]


def test_the_oldest_pipeline_leaves_first(place):
    small = WarmPipelines(limit_bytes=1)
    small.get(str(place / "tiny"))
    small.get(str(place / "small"))
    assert small.get(str(place / "small")).load_seconds == 0.0
    assert small.get(str(place / "tiny")).load_seconds > 0.0


def test_file_names_are_safe_and_distinct():
    names = compare.file_names(("../../etc/passwd", "a b/c d", "x", "x", "…"))
    assert names == (
        "reference.png",
        "1-passwd.png",
        "2-c-d.png",
        "3-x.png",
        "4-x.png",
        "5-variant.png",
    )


def test_through_the_real_worker(place, tmp_path, monkeypatch):
    """Compress, be killed, resume to the same bytes, draw the result beside the reference."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    workspace = Workspace.open(tmp_path / "space")
    with Worker(workspace, engine="tests.jobs.crashing_engine") as worker:
        asked = CompressRequest(model=str(place / "tiny"), recipe=RECIPE, name="mine")
        first = worker.submit(asked)
        killed = wait_state(workspace, first, "interrupted", "done", "failed")
        assert "SIGKILL" in killed.error["what"]
        assert len(list((workspace.models_folder / "mine.partial" / "layers").iterdir())) == 3
        workspace.resume(first)
        worker.wake()
        second = worker.submit(
            CompareRequest(model=str(place / "tiny"), variants=("mine",), prompt="a", steps=1)
        )
        done = wait_state(workspace, second, "done", "failed")
    assert done.error is None
    assert done.result["variants"][0]["variant"] == "mine"
    (entry,) = workspace.models()
    assert (entry.name, entry.run_id, entry.recipe) == ("mine", first, "two")
    assert entry.measured_bytes == workspace.run(first).result["measured_bytes"]
    assert workspace.run(first).state == "done"
    values = json.loads((done.folder / "run.json").read_text())
    assert values["versions"]["torch"]
    assert values["kernels"]
    twin = place / "small" / "unet" / "diffusion_pytorch_model.safetensors"
    made = entry.path / "unet" / "diffusion_pytorch_model.safetensors"
    assert made.read_bytes() == twin.read_bytes()
    workspace.close()
