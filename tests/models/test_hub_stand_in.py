"""The stand-in answers the hub's own client: what goes up comes down, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from tests.models.hub_stand_in import HubStandIn, hub

__all__ = ["hub"]


def test_what_goes_up_comes_down(hub: HubStandIn, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Model\n")
    (folder / "unet/weights.safetensors").write_bytes(bytes(range(256)) * 40)
    api = HfApi()
    api.create_repo("tester/model", private=True)
    first = api.upload_folder(repo_id="tester/model", folder_path=folder)
    assert hub.repositories["tester/model"].private
    assert hub.repositories["tester/model"].refs["main"] == first.oid
    assert list(hub.objects.values()) == [(folder / "unet/weights.safetensors").read_bytes()]
    down = Path(snapshot_download("tester/model"))
    for name in ("README.md", "unet/weights.safetensors"):
        assert (down / name).read_bytes() == (folder / name).read_bytes()
    assert down.name == first.oid


def test_revisions_and_refusals(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    old = hub.add("owner/name", {"config.json": b"1"})
    hub.repositories["owner/name"].refs["v1"] = old
    new = hub.add("owner/name", {"config.json": b"2"})
    for revision, commit, data in (("v1", old, b"1"), (old, old, b"1"), ("main", new, b"2")):
        down = Path(snapshot_download("owner/name", revision=revision))
        assert (down.name, (down / "config.json").read_bytes()) == (commit, data)
    with pytest.raises(RevisionNotFoundError):
        snapshot_download("owner/name", revision="v9")
    with pytest.raises(RepositoryNotFoundError):
        snapshot_download("owner/nothing")
    hub.add("owner/gated", {"config.json": b"1"})
    hub.repositories["owner/gated"].gated = True
    with pytest.raises(GatedRepoError):
        snapshot_download("owner/gated")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert (Path(snapshot_download("owner/name", revision="v1")) / "config.json").is_file()


def test_a_broken_download_goes_on_where_it_broke(
    hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    data = bytes(range(256)) * 4000
    hub.add("owner/name", {"model.safetensors": data})
    hub.break_after = 300_000
    down = Path(snapshot_download("owner/name"))
    assert (down / "model.safetensors").read_bytes() == data
    assert hub.fetched() == ["model.safetensors"] * 2
    assert hub.sent == len(data)
