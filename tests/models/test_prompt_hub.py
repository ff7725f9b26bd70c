"""A dataset's file from the hub's cache; no network here, so what is not cached is said."""

from __future__ import annotations

import pytest
from huggingface_hub import constants

from vqdq.errors import UserError
from vqdq.models.prompt_hub import download_prompt_set


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The hub's cache with one dataset, laid out as `hf download` leaves it."""
    commit = "c" * 40
    dataset = tmp_path / "datasets--owner--prompts"
    (dataset / "refs").mkdir(parents=True)
    (dataset / "refs" / "main").write_text(commit)
    (dataset / "snapshots" / commit / "data").mkdir(parents=True)
    (dataset / "snapshots" / commit / "data" / "p.tsv").write_text("Prompt\tCategory\na cup\tA\n")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_a_cached_dataset_opens_without_a_network(cache):
    assert cache.exists()
    found = download_prompt_set("owner/prompts/data/p.tsv")
    assert found.name == "owner/prompts/data/p.tsv"
    assert [(p.text, p.category) for p in found.prompts] == [("a cup", "A")]


@pytest.mark.parametrize("name", ["owner/prompts/other.tsv", "nobody/nothing/p.tsv"])
def test_what_is_not_cached_is_said(cache, name):
    assert cache.exists()
    with pytest.raises(UserError, match="not in the cache, and HF_HUB_OFFLINE is set") as caught:
        download_prompt_set(name)
    assert "hf download --repo-type dataset" in caught.value.remedy


@pytest.mark.parametrize("name", ["", "owner", "owner/prompts", "/a/b", "owner//x.tsv"])
def test_other_names_are_refused(name):
    with pytest.raises(UserError, match="is no file of a hub dataset"):
        download_prompt_set(name)
