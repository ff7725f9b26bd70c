"""Compression end to end: exact bytes, equal bits on disk and in memory, resumed, faults named."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models import tiny
from vqdq import codecs, durable
from vqdq.errors import Cancelled, UserError
from vqdq.layers.matrix import to_matrix
from vqdq.models import partial as partial_module
from vqdq.models.checkpoint import verify
from vqdq.models.compressor import CompressionResult, compress, compress_folder, plan
from vqdq.models.encoding import layer_seed
from vqdq.models.pipelines import load
from vqdq.progress import Event
from vqdq.recipe import Recipe

RECIPE = Recipe.from_json(
    {
        "name": "tiny",
        "rules": [
            {"pattern": "conv_*", "method": None},
            {"pattern": "*.attn2.*", "method": "uniform", "params": {"bits": 3, "clip": "absmax"}},
            {"pattern": "*", "method": "uniform", "params": {"bits": 4, "clip": "absmax"}},
        ],
    }
)
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("compressor") / "tiny")


@pytest.fixture(scope="module")
def result(model: Path) -> CompressionResult:
    return compress_folder(model, RECIPE, model.parent / "whole")


@pytest.fixture
def copied(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "tiny"))


def content(folder: Path) -> dict[str, bytes]:
    """Every file with its bytes."""
    files = (item for item in folder.rglob("*") if item.is_file())
    return {str(item.relative_to(folder)): item.read_bytes() for item in files}


class StopAt:
    """A report that cancels at layer k."""

    def __init__(self, layer: int) -> None:
        self.layer = layer

    def __call__(self, event: Event, /) -> None:
        if event.stage == "encode" and event.done == self.layer:
            raise Cancelled


def test_bytes_are_those_planned(result: CompressionResult) -> None:
    size = (result.output / WEIGHTS).stat().st_size
    assert result.predicted_bytes == result.measured_bytes == size
    assert result.plan.reference_bytes > 3 * size
    stored = load_file(result.output / WEIGHTS)
    for planned, layer in zip(result.plan.layers, result.layers, strict=True):
        mine = [t for key, t in stored.items() if key.rpartition(".")[0] == layer.name]
        held = sum(t.nbytes for t in mine) - (
            stored[f"{layer.name}.bias"].nbytes if f"{layer.name}.bias" in stored else 0
        )
        assert layer.bytes == held == planned.storage.total_bytes
        assert layer.reference_bytes == 2 * planned.layer.shape.count
    assert (
        sum(t.nbytes for t in stored.values()) < size < 1.2 * sum(t.nbytes for t in stored.values())
    )


def test_what_is_measured(result: CompressionResult, model: Path) -> None:
    by_name = {layer.name: layer for layer in result.layers}
    kept = by_name["conv_in"]
    assert (kept.method, kept.bits_per_weight, kept.error_db) == (None, 16.0, None)
    layer = next(r for r in result.layers if r.name.endswith("attn2.to_k"))
    weight = to_matrix(load_file(model / WEIGHTS)[f"{layer.name}.weight"])
    packed = codecs.encode(weight, "uniform", bits=3, clip="absmax", seed=layer_seed(0, layer.name))
    error = (weight.float() - packed.decode()).square().sum() / weight.float().square().sum()
    assert layer.error_db == pytest.approx(10 * torch.log10(error).item(), abs=1e-3)
    assert layer.bits_per_weight == packed.storage.bits_per_weight
    assert 3 < result.bits_per_weight < 5
    assert result.seconds > 0
    assert result.peak_memory_bytes > 50e6
    facts = json.loads((result.output / "vqdq.json").read_text())
    assert facts["weight_bytes"] == result.measured_bytes
    assert [row["name"] for row in facts["layers"]] == list(by_name)


def test_an_ordinary_diffusers_folder(result: CompressionResult, model: Path) -> None:
    ours, theirs = content(result.output), content(model)
    assert set(ours) - set(theirs) == {"vqdq.json", "recipe.json", "SHA256SUMS"}
    assert set(theirs) <= set(ours)
    changed = {name for name in theirs if ours[name] != theirs[name]}
    assert changed == {WEIGHTS, "unet/config.json", "README.md", "text_encoder/config.json"}
    before, after = (json.loads(c["text_encoder/config.json"]) for c in (theirs, ours))
    assert (before.pop("dtype"), after.pop("dtype")) == ("float16", "float32")
    assert before == after
    before, after = (json.loads(c["unet/config.json"]) for c in (theirs, ours))
    quantization = after.pop("quantization_config")
    assert before == after
    assert quantization["quant_method"] == "vqdq"
    assert Recipe.from_json(quantization["recipe"]) == RECIPE
    assert Recipe.from_json(json.loads(ours["recipe.json"])) == RECIPE
    for line in ("base_model_relation: quantized", "library_name: diffusers", "license: apache"):
        assert line in ours["README.md"].decode()
    here = str(result.output.parent).encode()
    assert not any(here in data for data in ours.values())


def test_disk_and_memory_are_equal_bit_for_bit(result: CompressionResult, model: Path) -> None:
    base = load(model)
    state = {key: tensor.clone() for key, tensor in base.unet.state_dict().items()}
    expected = tiny.draw(base)
    small = compress(base, RECIPE)
    opened = load(result.output)
    drawn = tiny.draw(small)
    assert torch.equal(drawn, tiny.draw(opened))
    assert not torch.equal(drawn, expected)
    assert small.vae is base.vae
    assert small.text_encoder is base.text_encoder
    assert small.scheduler is not base.scheduler
    assert list(base.unet.state_dict()) == list(state)
    assert all(torch.equal(t, state[key]) for key, t in base.unet.state_dict().items())
    assert not getattr(base.unet, "is_quantized", False)
    assert torch.equal(tiny.draw(base), expected)


def test_a_model_in_float32_is_rounded_alike(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path / "tiny", dtype=torch.float32, seed=4)
    done = compress_folder(folder, RECIPE, tmp_path / "out")
    assert torch.equal(tiny.draw(load(done.output)), tiny.draw(compress(load(folder), RECIPE)))
    assert all(r.error_db is not None for r in done.layers)  # 16 bits lose something here


def test_an_interrupted_run_goes_on_to_the_same_bytes(
    model: Path, result: CompressionResult, tmp_path: Path
) -> None:
    output = tmp_path / "whole"
    with pytest.raises(Cancelled):
        compress_folder(model, RECIPE, output, report=StopAt(5))
    assert not output.exists()
    layers = sorted((tmp_path / "whole.partial/layers").iterdir())
    assert len(layers) == 5
    assert all(path.suffix == ".safetensors" for path in layers)
    layers[2].write_bytes(layers[2].read_bytes()[:-1])  # a file that a crash left damaged
    times = {path: path.stat().st_mtime_ns for path in layers}
    again = compress_folder(model, RECIPE, output, report=lambda event: seen(times, event))
    assert content(output) == content(result.output)
    assert not (tmp_path / "whole.partial").exists()
    assert [r.bytes for r in again.layers] == [r.bytes for r in result.layers]


def seen(times: dict[Path, int], event: Event) -> None:
    if event.stage == "encode" and event.done == 5:  # before the sixth layer: five are done
        kept = [path for path, before in times.items() if path.stat().st_mtime_ns == before]
        assert len(kept) == 4


KILLED = """
import os, signal, sys
from vqdq.models.compressor import compress_folder
from vqdq.recipe import load_recipe

def report(event):
    if event.stage == "encode" and event.done == 7:
        os.kill(os.getpid(), signal.SIGKILL)

recipe = load_recipe(sys.argv[2], None)
compress_folder(sys.argv[1], recipe, sys.argv[3], report=report)
"""


def test_a_killed_process_leaves_work_that_goes_on(
    model: Path, result: CompressionResult, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(RECIPE.to_json()))
    script = KILLED.replace("sys.argv[2], None", "sys.argv[2], __import__('pathlib').Path('/')")
    output = tmp_path / "whole"
    done = subprocess.run(
        [sys.executable, "-c", script, str(model), str(recipe), str(output)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "whole.partial/layers").iterdir())) == 7
    assert not output.exists()
    compress_folder(model, RECIPE, output)
    assert content(output) == content(result.output)


def test_unfinished_work_is_not_mixed(model: Path, copied: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(Cancelled):
        compress_folder(model, RECIPE, output, report=StopAt(1))
    other = Recipe.from_json({**RECIPE.to_json(), "seed": 1})
    with pytest.raises(UserError, match="another recipe") as caught:
        compress_folder(model, other, output)
    assert caught.value.where == f"{output}.partial"
    os.utime(copied / WEIGHTS, (1, 1))
    with pytest.raises(UserError, match="another model"):
        compress_folder(copied, RECIPE, output)
    with (
        partial_module.open_partial(tmp_path / "busy", {}),
        pytest.raises(UserError, match="another process"),
    ):
        compress_folder(model, RECIPE, tmp_path / "busy")


def test_nothing_is_overwritten(model: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="already exists") as caught:
        compress_folder(model, RECIPE, tmp_path / "taken")
    assert caught.value.where == str(tmp_path / "taken")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="already exists"):
        compress_folder(model, RECIPE, tmp_path / "file")
    with pytest.raises(UserError, match="cannot be created"):
        compress_folder(model, RECIPE, tmp_path / "file" / "below")

    def take(event: Event) -> None:
        if event.stage == "save" and event.done == 2:
            (tmp_path / "raced").mkdir(exist_ok=True)

    with pytest.raises(UserError, match="already exists"):
        compress_folder(model, RECIPE, tmp_path / "raced", report=take)
    assert list((tmp_path / "raced").iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "raced", "raced.partial", "taken"]


def test_a_full_disk_before_the_work(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("vqdq.models.space.shutil.disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="1,000 bytes free") as caught:
        compress_folder(model, RECIPE, tmp_path / "out")
    assert "Free space" in caught.value.remedy


def test_a_full_disk_amid_the_work_keeps_the_layers(
    model: Path, result: CompressionResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = 6
    write = durable.os.fsync

    def full(handle: int) -> None:
        nonlocal room
        if (tmp_path / "out.partial/state.json").exists():
            room -= 1
        if room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(handle)

    with monkeypatch.context() as patch:
        patch.setattr(durable.os, "fsync", full)
        with pytest.raises(UserError, match="disk is full") as caught:
            compress_folder(model, RECIPE, tmp_path / "out")
    assert "finished layers are kept" in caught.value.remedy
    held = sorted(p.name for p in (tmp_path / "out.partial/layers").iterdir())
    assert held
    assert all(name.endswith(".safetensors") and not name.startswith(".") for name in held)
    compress_folder(model, RECIPE, tmp_path / "out")
    assert content(tmp_path / "out") == content(result.output)


def spoil(folder: Path, key: str, value: float) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors[key] = tensors[key].clone()
    tensors[key].view(-1)[3] = value
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("key", "where", "value"),
    [
        ("mid_block.resnets.0.conv1.weight", "mid_block.resnets.0.conv1", float("nan")),
        ("conv_out.weight", "conv_out.weight", float("inf")),
        ("time_embedding.linear_1.bias", "time_embedding.linear_1.bias", float("nan")),
    ],
)
def test_bad_weights_are_named(copied: Path, key: str, where: str, value: float) -> None:
    spoil(copied, key, value)
    with pytest.raises(UserError, match="NaN or infinite") as caught:
        compress_folder(copied, RECIPE, copied.parent / "out")
    assert caught.value.where == key
    with pytest.raises(UserError, match="NaN or infinite") as caught:
        compress(load(copied), RECIPE)
    assert caught.value.where == where


def test_what_16_bits_cannot_hold_is_named(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path / "tiny", dtype=torch.float32)
    spoil(folder, "conv_in.bias", 1e6)
    with pytest.raises(UserError, match="do not fit in float16") as caught:
        compress_folder(folder, RECIPE, tmp_path / "out")
    assert caught.value.where == "conv_in.bias"


def test_a_damaged_component_is_named_before_the_work(copied: Path) -> None:
    (copied / "vae/diffusion_pytorch_model.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="not a safetensors file"):
        compress_folder(copied, RECIPE, copied.parent / "out")
    assert not (copied.parent / "out.partial").exists()


def test_a_component_with_pickles_only(copied: Path) -> None:
    (copied / "vae/diffusion_pytorch_model.safetensors").rename(copied / "vae/model.bin")
    with pytest.raises(UserError, match="only pickled"):
        compress_folder(copied, RECIPE, copied.parent / "out")


def test_a_compressed_model_is_not_compressed_again(result: CompressionResult) -> None:
    for call in (
        lambda: compress_folder(result.output, RECIPE, result.output.parent / "twice"),
        lambda: plan(result.output, RECIPE),
        lambda: compress(load(result.output), RECIPE),
    ):
        with pytest.raises(UserError, match="compressed already"):
            call()


def test_the_half_precision_variant_loses_its_name(model: Path, tmp_path: Path) -> None:
    pipe = load(model).to(torch.float16, silence_dtype_warnings=True)
    pipe.save_pretrained(tmp_path / "halves", variant="fp16")
    (tmp_path / "halves/vae/old.bin").write_bytes(b"pickle")
    done = compress_folder(tmp_path / "halves", RECIPE, tmp_path / "out")
    assert not any(".fp16" in name or name.endswith(".bin") for name in content(done.output))
    assert verify(done.output).ok
    assert torch.equal(tiny.draw(load(done.output)), tiny.draw(compress(load(model), RECIPE)))


def test_shards_are_read(model: Path, result: CompressionResult, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "tiny"))
    (folder / WEIGHTS).unlink()
    unet = copy.copy(load(model).unet).half()
    unet.save_pretrained(folder / "unet", max_shard_size="500KB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 2
    done = compress_folder(folder, RECIPE, tmp_path / "out")
    assert (done.output / WEIGHTS).read_bytes() == (result.output / WEIGHTS).read_bytes()


def test_a_recipe_that_packs_nothing_writes_its_16_bits(tmp_path: Path) -> None:
    source = tiny.folder(tmp_path / "tiny")
    recipe = Recipe.from_json({"name": "none", "rules": [{"pattern": "*", "method": None}]})
    seen: list[Event] = []
    made = compress_folder(source, recipe, tmp_path / "made", report=seen.append)
    assert made.measured_bytes == made.plan.total_bytes
    assert [event.share for event in seen if event.stage == "encode"] == [1.0]
