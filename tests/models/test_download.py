"""Models by hub id: what is fetched, pinned and said, against a stand-in of the hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from tests.models import tiny
from tests.models.hub_stand_in import HubStandIn, hub
from vqdq.errors import Cancelled, UserError
from vqdq.models import download as downloading
from vqdq.models.compressor import compress_folder
from vqdq.models.pipelines import load
from vqdq.models.sources import locate
from vqdq.progress import Event
from vqdq.recipe import Recipe
from vqdq.rules import Rule

__all__ = ["hub"]
ROUND = Recipe(name="round", rules=(Rule(pattern="mid*", method="uniform"),))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("download") / "tiny")


@pytest.fixture(autouse=True)
def forget() -> None:
    downloading._commit.cache_clear()


def published(hub: HubStandIn, model: Path) -> tuple[str, dict[str, bytes]]:
    """The model among what repositories hold beside it; returns its commit and its own files."""
    own = {
        item.relative_to(model).as_posix(): item.read_bytes()
        for item in model.rglob("*")
        if item.is_file()
    }
    beside = {
        "unet/diffusion_pytorch_model.fp16.safetensors": b"half",
        "unet/diffusion_pytorch_model.bin": b"pickle",
        "unet/program.py": b"raise SystemExit",
        "pipeline.py": b"raise SystemExit",
        "text_encoder/pytorch_model.bin.index.json": b"{}",
        "text_encoder/flax_model.msgpack": b"flax",
        "unet/onnx/model.onnx": b"onnx",
        "tiny.safetensors": b"single",
        "samples/picture.png": b"picture",
    }
    return hub.add("owner/tiny", own | beside), own


def test_only_one_set_of_safetensors_and_texts_is_fetched(hub: HubStandIn, model: Path) -> None:
    commit, own = published(hub, model)
    events: list[Event] = []
    source = locate("owner/tiny", report=events.append)
    assert (source.name, source.revision, source.variant) == ("owner/tiny", commit, None)
    assert sorted(hub.fetched()) == sorted(own)
    assert [event.stage for event in events] == ["download"] * len(events)
    done = [event.done for event in events]
    assert done == sorted(done)
    index = len(own["model_index.json"])  # fetched before, to know what belongs to the model
    size = sum(map(len, own.values()))
    assert {event.total for event in events} == {size}
    assert done[0] >= index
    assert done[-1] == size
    asked = len(hub.requests)
    assert torch.equal(tiny.draw(load("owner/tiny")), tiny.draw(load(model)))
    assert len(hub.requests) == asked  # one process sees one commit of a branch, and fetches once


def test_a_revision_is_pinned_and_recorded(hub: HubStandIn, model: Path, tmp_path: Path) -> None:
    commit, _ = published(hub, model)
    hub.repositories["owner/tiny"].refs["v1.0"] = commit
    hub.add("owner/tiny", {"model_index.json": b"{}"})
    for name in ("owner/tiny@v1.0", f"owner/tiny@{commit}"):
        assert locate(name).revision == commit
    compress_folder("owner/tiny@v1.0", ROUND, tmp_path / "small")
    facts = json.loads((tmp_path / "small/vqdq.json").read_text())
    assert (facts["base_model"], facts["base_model_revision"]) == ("owner/tiny", commit)
    front = (tmp_path / "small/README.md").read_text().split("---")[1].splitlines()
    assert {"base_model: owner/tiny", f"base_model_revision: {commit}"} <= set(front)
    with pytest.raises(UserError, match='no branch, tag or commit "v2"'):
        locate("owner/tiny@v2")
    with pytest.raises(UserError, match="no unet and no transformer"):
        locate("owner/tiny")


def test_offline_opens_what_is_here_and_says_what_is_not(
    hub: HubStandIn, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, _ = published(hub, model)
    folder = locate("owner/tiny").folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    downloading._commit.cache_clear()
    asked = len(hub.requests)
    for name in ("owner/tiny", f"owner/tiny@{commit}"):
        assert locate(name).folder == folder
    for name, step in (
        ("owner/other", "`hf download owner/other`"),
        ("owner/tiny@v2", "`hf download owner/tiny --revision v2`"),
    ):
        with pytest.raises(UserError, match="HF_HUB_OFFLINE is set") as caught:
            locate(name)
        assert step in caught.value.remedy
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="not wholly"):
        locate("owner/tiny")
    assert len(hub.requests) == asked


def test_a_download_that_was_stopped_goes_on(
    hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    monkeypatch.setattr(downloading, "_POLL_SECONDS", 0.0)
    weights = bytes(range(256)) * 4000
    index = json.dumps({"_class_name": "X", "unet": ["diffusers", "UNet2DConditionModel"]})
    path = "unet/diffusion_pytorch_model.safetensors"
    hub.add("owner/name", {"model_index.json": index.encode(), path: weights})

    def stop(event: Event) -> None:
        if event.done > len(index):
            raise Cancelled

    with pytest.raises(Cancelled):
        downloading.download("owner/name", report=stop)
    snapshot = downloading.download("owner/name")
    assert (snapshot.folder / path).read_bytes() == weights
    only = downloading.download("owner/name", weights_of=())
    assert only.folder == snapshot.folder


def test_refusals_of_the_hub_are_said_plainly(hub: HubStandIn) -> None:
    index = json.dumps({"unet": ["diffusers", "UNet2DConditionModel"]}).encode()
    hub.add("owner/gated", {"model_index.json": index})
    hub.repositories["owner/gated"].gated = True
    hub.add("owner/pickled", {"model_index.json": index, "unet/diffusion_pytorch_model.bin": b"x"})
    hub.add("owner/single", {"flux.safetensors": b"x"})
    hub.add("owner/broken", {"model_index.json": b"["})
    for name, what, step in (
        ("owner/nothing", "no such model", "hf auth login"),
        ("owner/gated", "accept this model's terms", "huggingface.co/owner/gated"),
        ("owner/pickled", "only pickled weights", "safetensors"),
        ("owner/single", "there is no model_index.json", "hf download owner/single flux"),
        ("owner/broken", "not JSON", "another revision"),
        ("owner/a..b", "no name that the hub takes", "owner/name@revision"),
    ):
        with pytest.raises(UserError, match=what) as caught:
            locate(name)
        assert step in caught.value.remedy
        assert caught.value.where == name
    hub.broken = True
    with pytest.raises(UserError, match="cannot be reached"):
        locate("owner/other")
