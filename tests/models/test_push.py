"""A pushed folder is what everybody then opens by its name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard, constants

from tests.models import tiny
from tests.models.hub_stand_in import HubStandIn, hub
from tests.models.test_single_file import RECIPE
from vqdq.cli import main
from vqdq.errors import Cancelled, UserError
from vqdq.models.checkpoint import verify
from vqdq.models.compressor import compress_folder
from vqdq.models.push import Parcel, parcel, push
from vqdq.progress import Event

__all__ = ["hub"]
LICENCE = "license: other\nlicense_name: toy-terms\nlicense_link: LICENSE.md\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("push")
    tiny.folder(root / "tiny")
    (root / "tiny" / "README.md").write_text(f"---\n{LICENCE}---\n# Tiny\n")
    return compress_folder(root / "tiny", RECIPE, root / "small").output


@pytest.fixture(scope="module")
def sent(folder: Path) -> Parcel:
    return parcel(folder, "tester/small", base_model="tester/tiny")


def test_pushed_it_opens_by_its_name_and_draws_the_same(
    hub: HubStandIn, folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["push", str(folder), "tester/small", "--base-model", "tester/tiny", "--json"]
    assert main([*words, "--dry-run"]) == 0
    planned = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (planned["sent"], hub.requests) == (False, [])
    assert main([*words, "--private", "--revision", "v1"]) == 0
    made = json.loads(capsys.readouterr().out.splitlines()[-1])
    there = hub.repositories["tester/small"]
    assert (there.private, there.refs["v1"], made["private"]) == (True, made["commit"], True)
    files = {path: data for path, data in there.commits[made["commit"]].items() if path[0] != "."}
    assert {path: len(data) for path, data in files.items()} == planned["files"]
    assert sum(planned["files"].values()) == planned["bytes"]
    mine = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files.keys() == mine
    same = {path for path in mine if files[path] == (folder / path).read_bytes()}
    assert mine - same == {"README.md", "SHA256SUMS"}
    for (
        path,
        data,
    ) in files.items():  # with the card and its checksum of the hub, in order there too
        (tmp_path / "down" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "down" / path).write_bytes(data)
    assert verify(tmp_path / "down").ok
    opened = DiffusionPipeline.from_pretrained("tester/small", revision="v1")
    expected = tiny.draw(DiffusionPipeline.from_pretrained(folder))
    assert torch.equal(tiny.draw(opened), expected)


def test_the_card_says_what_the_hub_files_it_by(sent: Parcel) -> None:
    text = sent.texts["README.md"].decode()
    data = ModelCard(text).data.to_dict()
    wanted = {
        "base_model": "tester/tiny", "base_model_relation": "quantized", "license": "other",
        "library_name": "diffusers", "pipeline_tag": "text-to-image",
        "license_name": "toy-terms", "license_link": "LICENSE.md",
    }  # fmt: skip
    assert {key: data.get(key) for key in wanted} == wanted
    assert "vqdq" in data["tags"]
    assert 'from_pretrained("tester/small")' in text
    alone = ModelCard(parcel(sent.folder, "tester/small").texts["README.md"].decode()).data
    assert "base_model_relation" not in alone.to_dict()  # a relation needs somebody


def test_what_is_not_pushed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(folder.parent / "tiny"), "tester/small"]) == 2
    assert "is not compressed" in capsys.readouterr().err
    with pytest.raises(UserError, match="no name of a model"):
        parcel(folder, "small")
    (folder / "extra.txt").write_text("nobody asked for this")
    try:
        with pytest.raises(UserError, match=r"damaged and was not sent: extra\.txt"):
            parcel(folder, "tester/small")
    finally:
        (folder / "extra.txt").unlink()


def test_a_hub_that_does_not_take_it(
    hub: HubStandIn, sent: Parcel, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("tester/small", {"config.json": b"{}"})
    with pytest.raises(UserError, match="is public; nothing was sent"):
        push(sent, private=True)
    assert hub.repositories["tester/small"].files == {"config.json": b"{}"}
    hub.read_only = True
    with pytest.raises(UserError, match="does not let this token write"):
        push(sent)
    hub.read_only, hub.broken = False, True
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    with pytest.raises(UserError, match="the hub answers 500"):
        push(sent)
    hub.broken = False
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")
    with pytest.raises(UserError, match="nobody is logged in"):
        push(sent)
    monkeypatch.setenv("HF_TOKEN", "hf_stand_in")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        push(sent)


def test_a_push_that_stopped_goes_on(hub: HubStandIn, sent: Parcel) -> None:
    def stop(event: Event) -> None:
        if event.done > sent.bytes // 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        push(sent, report=stop)
    assert set(hub.repositories["tester/small"].files) == {".gitattributes"}  # nothing visible
    uploaded = [path for method, path in hub.requests if method == "PUT"]
    push(sent)
    again = [path for method, path in hub.requests if method == "PUT"]
    assert len(uploaded) >= 1
    assert len(again) == len(set(again))  # no weight was sent twice
    assert again[: len(uploaded)] == uploaded
