"""Damaged, contradictory and hostile models: each a `UserError` that names place and next step."""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from tests.models import single_files, tiny
from vqdq.errors import UserError
from vqdq.models import bounds, importing
from vqdq.models.compressor import compress_folder, plan
from vqdq.models.copying import copy_components
from vqdq.models.denoisers import skeleton
from vqdq.models.sources import locate
from vqdq.models.weight_sets import open_component
from vqdq.models.weights import open_weights
from vqdq.recipe import Recipe
from vqdq.rules import Rule

NOBODY = 65534
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
ROUND = Recipe(name="round", rules=(Rule(pattern="mid*", method="uniform"),))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("bad") / "tiny")


@pytest.fixture
def copied(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "copy"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(what: str, opened: Callable[[], object]) -> UserError:
    with pytest.raises(UserError, match=what) as caught:
        opened()
    assert caught.value.where
    assert caught.value.remedy
    return caught.value


def entry(start: int, stop: int, shape: list[Any], dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("header", "what"),
    [
        ({"a": entry(0, 4, [4]), "b": entry(2, 4, [2])}, "b overlaps another tensor"),
        ({"a": entry(1, 4, [3])}, "a leaves a gap"),
        ({"a": entry(-4, 0, [4])}, "entry of a is malformed"),
        ({"a": entry(0, 2**70, [2**70])}, "size of a is wrong"),
        ({"a": entry(0, 10**12, [10**12])}, "is cut short: it holds"),
        ({"a": entry(0, 4, [4.0])}, "entry of a is malformed"),
        ({"a": entry(0, 4, [True] * 2)}, "entry of a is malformed"),
        ({"a": entry(0, 4, ["4"])}, "entry of a is malformed"),
        ({"a": entry(0, 4, [1] * 9 + [4])}, "entry of a is malformed"),
        ({"a": entry(0, 4, [4], "F8_E4M3")}, "F8_E4M3: it is quantized already"),
        ({"a": entry(0, 4, [4], "C64")}, "C64, which is not supported"),
        ({"a": entry(0, 4, [4]), "__metadata__": {"x": 1}}, "metadata are malformed"),
    ],
)
def test_headers_that_contradict_themselves(
    tmp_path: Path, header: dict[str, Any], what: str
) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    assert refusal(what, lambda: open_weights(path)).where == str(path)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    twice = b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{}}'
    for data, what in (
        (b"", "it is empty"),
        (struct.pack("<Q", 10**12) + b"{}", "would take 1,000,000,000,000 bytes"),
        (struct.pack("<Q", len(twice)) + twice, "the header has a twice"),
        (struct.pack("<Q", 20_000) + b"[" * 20_000, "the header is not JSON"),
        (b"PK\x03\x04" + bytes(60), "pickled"),
        (b"\x80\x02}q\x00X" + bytes(60), "pickled"),
        (b"GGUF" + bytes(60), "GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
    ):
        path.write_bytes(data)
        assert refusal(what, lambda: open_weights(path)).where == str(path)
    path.unlink()
    os.mkfifo(path)  # opening one would wait for ever
    refusal("is no file", lambda: open_weights(path))
    os.mkfifo(tmp_path / "model_index.json")
    refusal("is no file", lambda: locate(tmp_path))


def test_shards_and_their_index(tmp_path: Path) -> None:
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    save_file({"a": torch.ones(2)}, tmp_path / one)
    save_file({"b": torch.ones(2)}, tmp_path / two)
    index = tmp_path / "model.safetensors.index.json"
    for weight_map, what in (
        ({"a": one, "b": two, "c": two}, f"says that c is in {two}; it is in no shard"),
        ({"a": two, "b": two}, f"says that a is in {two}; it is in no shard"),
        ({"a": one, "b": one, "c": two}, f"says that b is in {one}; it is in {two}"),
        ({"a": one, "c": two}, "says that c is in"),
        ({"a": one, "b": f"../{two}"}, "which is no shard of this folder"),
        ({"a": one, "b": "/etc/passwd"}, "which is no shard of this folder"),
        ({"a": one, "b": 7}, "which is no shard of this folder"),
        ({"a": one, "b": "model-00003-of-00003.safetensors"}, "does not exist"),
        ({}, "has no weight_map"),
        ([one], "has no weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        refusal(what, lambda: open_component(tmp_path, "model"))
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / two)
    index.write_text(json.dumps({"weight_map": {"a": one, "b": two}}))
    refusal(f"a is in two shards, {one} and {two}", lambda: open_component(tmp_path, "model"))
    save_file({"b": torch.ones(2), "c": torch.ones(2)}, tmp_path / two)
    refusal("does not name c", lambda: open_component(tmp_path, "model"))
    index.write_text(json.dumps({"weight_map": {"a": one, "b": two, "c": two}}))
    assert [len(file.tensors) for file in open_component(tmp_path, "model")] == [1, 2]


def test_weights_that_do_not_fit_their_config(copied: Path, tmp_path: Path) -> None:
    tensors = load_file(copied / WEIGHTS)
    key = "conv_in.weight"
    for state, what in (
        ({k: v for k, v in tensors.items() if k != key}, f"{key} is missing"),
        (tensors | {key: tensors[key][:1]}, rf"{key} is \[1, 4, 3, 3\], config.json says"),
        (tensors | {"extra.weight": torch.ones(1)}, "extra.weight has no place"),
        (tensors | {key: tensors[key].to(torch.float8_e4m3fn)}, "quantized already"),
    ):
        save_file({k: v.contiguous() for k, v in state.items()}, copied / WEIGHTS)
        assert str(copied) in refusal(what, lambda: plan(copied, ROUND)).where
    for place in ("mid_block.resnets.0.conv1.weight", "conv_out.bias"):  # packed, and kept
        bad = tensors[place].clone()
        bad.view(-1)[3] = float("nan")
        save_file(tensors | {place: bad}, copied / WEIGHTS)
        out = tmp_path / place
        found = refusal("1 of .* NaN", lambda to=out: compress_folder(copied, ROUND, to))
        assert found.where == place
        assert not out.exists()
    save_file(tensors, copied / WEIGHTS)
    for method in ("bitsandbytes", "torchao", "gguf", "quanto"):
        edit(copied / "unet/config.json", quantization_config={"quant_method": method})
        refusal(f"quantized already, by {method}", lambda: plan(copied, ROUND))


def test_configs_out_of_range(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_MODULES", 300)
    flux = {"_class_name": "FluxTransformer2DModel", "num_attention_heads": 1}
    for change, what in (
        ({"num_layers": 10**9}, "num_layers is 1000000000: out of range"),
        ({"num_layers": 10**6}, "more than 300 modules"),
        ({"in_channels": float("nan")}, "in_channels is nan"),
        ({"axes_dims_rope": [1] * 20_000}, "too long"),
        ({"num_layers": "many"}, "does not describe"),
    ):
        refusal(what, lambda given=flux | change: skeleton(given))
    config = json.loads((model / "unet/config.json").read_text())
    for change in ({"norm_num_groups": 0}, {"block_out_channels": []}, {"in_channels": -4}):
        refusal("does not describe", lambda given=config | change: skeleton(given))


def test_links(copied: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"private": 1}')
    words = copied / "tokenizer/tokenizer_config.json"
    kept = words.read_text()
    words.unlink()
    words.symlink_to(secret)
    (tmp_path / "out").mkdir()
    source = locate(copied)
    found = refusal("a link out of the model's", lambda: copy_components(source, tmp_path / "out"))
    assert found.where == str(words)
    words.unlink()
    words.write_text(kept)
    weights = copied / WEIGHTS
    moved = Path(shutil.move(weights, tmp_path / "elsewhere.safetensors"))
    weights.symlink_to(moved)  # weights may lie on another disk
    assert plan(copied, ROUND).quantized
    weights.unlink()
    weights.symlink_to(weights)
    refusal("cannot be read|does not exist", lambda: locate(copied).weights())
    (copied / "unet/config.json").unlink()
    (copied / "unet/config.json").symlink_to(copied / "unet/config.json")
    refusal("cannot be read", lambda: locate(copied))


@contextmanager
def nobody() -> Iterator[None]:
    """Root may read everything: what is inside is done as a user who may not."""
    mine = os.geteuid()
    if mine == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(mine)


def test_a_folder_without_permission(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copied)  # nobody may go through the folders above it
    copied.chmod(0o755)
    with nobody():
        assert locate(".").denoiser == "unet"
    (copied / "unet").chmod(0)
    try:
        with nobody():
            refusal("may not be read", lambda: locate("."))
    finally:
        (copied / "unet").chmod(0o755)


def test_a_full_disk_leaves_nothing(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    file = single_files.save(
        tmp_path / "m.safetensors", single_files.unet(load_file(copied / WEIGHTS), 1)
    )
    plain = importing.write_weights

    def full(*given: Any) -> int:
        plain(*given)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(importing, "write_weights", full)
    found = refusal("the disk is full; the import takes", lambda: locate(file, base=copied))
    assert "kept" in found.remedy
    home = importing.imports_folder()
    assert {item.name for item in home.glob("*/*")} == {"scheduler", "text_encoder", "tokenizer"}
    monkeypatch.setattr(importing, "write_weights", plain)
    monkeypatch.setattr(importing.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    refusal("0 bytes free, the import takes", lambda: locate(file, base=copied))
