"""`verify` finds what is wrong with a compressed folder, and nothing when nothing is."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models import tiny
from vqdq.errors import UserError
from vqdq.models.checkpoint import half, load_quantized, verify, write_sums
from vqdq.models.compressor import compress_folder
from vqdq.progress import Event
from vqdq.recipe import Recipe

RULE = {"pattern": "*", "method": "uniform", "params": {"clip": "absmax"}}
RECIPE = Recipe.from_json({"name": "t", "rules": [RULE]})
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoint")
    return compress_folder(tiny.folder(root / "tiny"), RECIPE, root / "packed").output


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "packed"))


def rewrite(folder: Path, change: object) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)  # type: ignore[operator]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    write_sums(folder)


def test_a_good_folder(folder: Path) -> None:
    events: list[Event] = []
    found = verify(folder, report=events.append)
    assert found.ok
    layers = json.loads((folder / "unet/config.json").read_text())["quantization_config"]["layers"]
    assert found.layers == len(layers)
    assert found.files == len([p for p in folder.rglob("*") if p.is_file()]) - 1
    assert {event.stage for event in events} == {"checksums", "decode"}
    assert load_quantized(folder).unet.is_quantized


def test_the_checksums_are_those_of_sha256sum(folder: Path) -> None:
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=folder, check=False
    )
    assert done.returncode == 0


def test_one_flipped_bit_is_found(copied: Path) -> None:
    data = bytearray((copied / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (copied / WEIGHTS).write_bytes(data)
    assert verify(copied).problems == (f"{WEIGHTS}: differs from its checksum.",)


def test_missing_extra_and_truncated_files(copied: Path) -> None:
    (copied / "recipe.json").unlink()
    (copied / "extra.txt").write_text("x")
    (copied / WEIGHTS).write_bytes((copied / WEIGHTS).read_bytes()[:-9])
    problems = verify(copied).problems
    assert "recipe.json: is missing." in problems
    assert "extra.txt: has no checksum." in problems
    assert any("its header promises" in problem for problem in problems)
    (copied / "SHA256SUMS").unlink()
    assert any("no checksums" in problem for problem in verify(copied).problems)


def test_tensors_against_the_plan(copied: Path) -> None:
    name = "time_embedding.linear_1"

    def change(tensors: dict[str, torch.Tensor]) -> None:
        keys = [key for key in tensors if key.startswith(f"{name}.") and key != f"{name}.bias"]
        del tensors[keys[0]]
        tensors[keys[1]] = tensors[keys[1]].float()
        tensors["conv_in.bias"] = tensors["conv_in.bias"].clone()
        tensors["conv_in.bias"][0] = torch.nan

    rewrite(copied, change)
    found = verify(copied)
    assert any(p.startswith(name) and p.endswith("is missing.") for p in found.problems)
    assert any("another dtype or shape" in p for p in found.problems)
    assert "conv_in.bias: NaN or infinite values." in found.problems
    assert len(found.problems) == 3


def test_weights_that_decode_to_nan(copied: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        key = next(k for k in tensors if k.startswith("conv_out.") and "scale" in k)
        tensors[key] = torch.full_like(tensors[key], torch.nan)

    rewrite(copied, change)
    assert verify(copied).problems == ("conv_out: decodes to NaN or infinite values.",)


def test_folders_of_others(folder: Path, copied: Path) -> None:
    with pytest.raises(UserError, match="not compressed by vqdq"):
        verify(folder.parent / "tiny")
    with pytest.raises(UserError, match="not compressed by vqdq"):
        load_quantized(folder.parent / "tiny")
    config = json.loads((copied / "unet/config.json").read_text())
    config["quantization_config"]["quant_method"] = "other"
    (copied / "unet/config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="not compressed by vqdq"):
        verify(copied)


def test_half_keeps_whole_numbers() -> None:
    numbers = torch.arange(3)
    assert half(numbers, "n") is numbers
    assert half(torch.ones(2), "x").dtype == torch.float16


def test_large_weights_become_shards_with_an_index(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqdq.tensors.LARGEST_SHARD", 150_000)
    cut = compress_folder(folder.parent / "tiny", RECIPE, tmp_path / "cut")
    files = sorted((tmp_path / "cut/unet").glob("*.safetensors"))
    count = len(files)
    names = [
        f"diffusion_pytorch_model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)
    ]
    assert count > 2
    assert [file.name for file in files] == names
    assert sum(file.stat().st_size for file in files) == cut.predicted_bytes == cut.measured_bytes
    assert all(0 < sum(t.nbytes for t in load_file(file).values()) <= 150_000 for file in files)
    index = json.loads((tmp_path / f"cut/{WEIGHTS}.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(
        tensor.nbytes for file in files for tensor in load_file(file).values()
    )
    one = load_file(folder / WEIGHTS)
    assert {key: names.index(name) for key, name in index["weight_map"].items()} == {
        key: place for place, file in enumerate(files) for key in load_file(file)
    }
    assert index["weight_map"].keys() == one.keys()
    pictures = [tiny.draw(load_quantized(place)) for place in (folder, tmp_path / "cut")]
    assert torch.equal(pictures[0], pictures[1])
    assert verify(tmp_path / "cut").ok
    files[1].unlink()
    with pytest.raises(UserError, match="00002"):
        load_quantized(tmp_path / "cut")
