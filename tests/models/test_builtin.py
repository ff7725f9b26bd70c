"""Built-in configs: against published counts, the original layouts, and a file without a base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import constants
from safetensors.torch import load_file
from torch import nn

from tests.models import single_files, tiny
from vqdq.cli import main
from vqdq.errors import UserError
from vqdq.models import builtin, opening
from vqdq.models.compressor import compress_folder, plan
from vqdq.models.denoisers import skeleton
from vqdq.models.export.layout import pieces
from vqdq.models.export.transformers import aura_places, sd3_places
from vqdq.models.fit import fit
from vqdq.models.importing import parts_of
from vqdq.models.inventory import census, inventory
from vqdq.models.pipelines import load
from vqdq.models.single_file import open_single_file
from vqdq.models.sources import locate
from vqdq.models.text_parts import text_skeleton
from vqdq.recipe import Recipe
from vqdq.rules import Rule

State = dict[str, torch.Tensor]
ROUND = Recipe(name="round", rules=(Rule(pattern="mid*", method="uniform"),))
UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
# Millions of parameters, as the model cards and papers say.
COUNTS = {
    "unet-1": 859.5, "unet-2": 865.9, "unet-xl": 2567.5, "vae-1": 83.7, "vae-xl": 83.7,
    "vae-3": 83.8, "clip-l": 123.1, "clip-l projected": 123.7, "clip-h": 340.4, "clip-g": 694.7,
    "t5-xxl": 4762.3,
    "transformer-3": 2028.3, "transformer-3.5-medium": 2243.2, "transformer-3.5-large": 8056.6,
    "transformer-flux-dev": 11901.4, "transformer-flux-schnell": 11891.2,
}  # fmt: skip
DENOISERS = ("unet", "transformer")


@pytest.fixture(autouse=True)
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))


def ghosts(family: str) -> dict[str, nn.Module]:
    """Every component with weights of a family, on the meta device."""
    files = builtin.configs_of(family, {})
    found: dict[str, nn.Module] = {}
    for name, (library, kind) in (
        (n, v)
        for n, v in files["model_index.json"].items()
        if n in {path.partition("/")[0] for path in files} - {"scheduler"}
    ):
        config = files[f"{name}/config.json"]
        made = skeleton(config) if library == "diffusers" else text_skeleton(kind, config, where="")
        found[name] = made
    return found


def laid_out(family: str, parts: Mapping[str, nn.Module]) -> State:
    """The tensors of a family by the names of its first authors, on the meta device."""
    states = {name: dict(part.state_dict()) for name, part in parts.items()}
    name = next(name for name in DENOISERS if name in parts)
    state, prefix = states[name], "model.diffusion_model."
    if name == "unet":
        found = single_files.unet(state, 2)
    elif family.startswith("flux"):
        return single_files.flux(state)
    else:
        aura = family == "auraflow"
        config = dict(parts[name].config)
        places = aura_places(config) if aura else sd3_places(config)
        laid = pieces(state, places, family)
        prefix = "" if aura else prefix
        found = {piece.key: piece.build(state.__getitem__) for piece in laid}
    found = single_files.prefixed(prefix, found)
    if name == "transformer":
        return found
    found |= single_files.prefixed("first_stage_model.", single_files.vae(states["vae"], 4))
    first, second = (
        ("cond_stage_model.transformer.", "cond_stage_model.model.")
        if family in ("v1", "v2")
        else ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.")
    )
    if family == "v2":
        return found | single_files.prefixed(second, single_files.open_clip(states["text_encoder"]))
    if "text_encoder" in states:
        own = {key.removeprefix("text_model."): t for key, t in states["text_encoder"].items()}
        found |= single_files.prefixed(f"{first}text_model.", own)
    if "text_encoder_2" in states:
        place = second if "text_encoder" in states else "conditioner.embedders.0.model."
        own = single_files.open_clip(states["text_encoder_2"])
        found |= single_files.prefixed(place, own)
    return found


def hollow(path: Path, state: State) -> Path:
    """A checkpoint of full size that takes no room: its header, and a hole for the data."""
    header: dict[str, Any] = {}
    end = 0
    for key, tensor in state.items():
        begin, end = end, end + 2 * tensor.numel()
        header[key] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    words = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(words).to_bytes(8, "little") + words)
        file.truncate(8 + len(words) + end)
    return path


@pytest.mark.parametrize("family", json.loads((builtin.HERE / "families.json").read_text()))
def test_a_file_of_the_published_size_is_complete_but_for_words(
    family: str, tmp_path: Path
) -> None:
    parts = ghosts(family)
    known = builtin._read("families.json")[family]["components"]
    for name, part in parts.items():
        config = known[name][2]
        projected = "clip-l projected" if "WithProjection" in known[name][1] else ""
        key = projected if config == "clip-l" and projected else config
        if key in COUNTS:
            assert round(census(part).parameters / 1e6, 1) == COUNTS[key], key
    file = open_single_file(hollow(tmp_path / "m.safetensors", laid_out(family, parts)))
    assert file.family == family
    base, why = opening._built_in(file)
    assert base is not None, why
    found = parts_of(file, base)
    held = set(parts) if "unet" in parts else {"transformer"}
    assert set(found) == held
    for name in held:
        wanted = {key: tensor.shape for key, tensor in parts[name].state_dict().items()}
        assert {key: tensor.shape for key, tensor in found[name].items()} == wanted, name


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small model whose family is published in its size."""
    folder = tiny.folder(tmp_path / "tiny")
    read = builtin._read
    families = read("families.json")
    families["v1"]["components"]["scheduler"][1] = "DDIMScheduler"
    configs = {}
    for name, (_, _, config) in families["v1"]["components"].items():
        if config is not None:
            own = "scheduler_config" if name == "scheduler" else "config"
            configs[config] = json.loads((folder / name / f"{own}.json").read_text())
    monkeypatch.setattr(builtin, "_read", {"configs.json": configs, "families.json": families}.get)
    return folder


def test_a_file_alone_is_described_planned_and_compressed(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = load_file(model / UNET)
    file = single_files.save(
        tmp_path / "dream.safetensors",
        single_files.prefixed("model.diffusion_model.", single_files.unet(state, 1)),
        single_files.prefixed("first_stage_model.", single_files.vae(load_file(model / VAE), 2)),
        single_files.prefixed("cond_stage_model.transformer.text_model.", load_file(model / TEXT)),
    )
    source = locate(file)
    assert source.missing == ("tokenizer",)
    assert source.completed_by == "built-in configs"
    for name in (UNET, VAE, TEXT):  # bit for bit, by the name map of the tests
        one, two = load_file(source.folder / name), load_file(model / name)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)
    assert plan(file, ROUND).predicted_bytes == plan(model, ROUND).predicted_bytes
    with pytest.raises(UserError, match="cannot draw without tokenizer") as caught:
        load(file)
    assert "vqdq import dream.safetensors --base BASE" in caught.value.remedy
    recipe = tmp_path / "round.json"
    recipe.write_text(json.dumps(ROUND.to_json()))
    out = tmp_path / "out"
    assert main(["compress", str(file), "--recipe", str(recipe), "--output", str(out)]) == 0
    assert "Missing to draw: tokenizer. Copy tokenizer/ of" in capsys.readouterr().out
    assert "## What is missing" in (out / "README.md").read_text()
    compress_folder(model, ROUND, tmp_path / "whole")
    assert (out / UNET).read_bytes() == (tmp_path / "whole" / UNET).read_bytes()
    with pytest.raises(UserError, match="cannot draw without tokenizer") as caught:
        load(out)
    assert f"Copy tokenizer/ of the model it was made from into {out}." == caught.value.remedy
    shutil.copytree(model / "tokenizer", out / "tokenizer")
    drawn = tiny.draw(DiffusionPipeline.from_pretrained(out))
    assert torch.equal(drawn, tiny.draw(DiffusionPipeline.from_pretrained(tmp_path / "whole")))
    whole = locate(file, base=model)  # and a base afterwards completes it, from then on
    assert whole.missing == ()
    assert locate(file).folder == whole.folder


def test_a_denoiser_alone(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = single_files.save(
        tmp_path / "unet.safetensors", single_files.unet(load_file(model / UNET), 1)
    )
    found = inventory(file)
    assert found.missing == ("vae", "text_encoder", "tokenizer")
    parts = {part.name: part for part in found.parts}
    assert {name for name, part in parts.items() if not part.bytes} == {"vae", "text_encoder"}
    whole = {part.name: part.census for part in inventory(model).parts}
    assert {name: part.census for name, part in parts.items()} == whole
    known, wanted = (fit(each, 10**9, 16)[0] for each in (found, inventory(model)))
    assert known.amounts == wanted.amounts  # what is not there yet will take memory too
    assert main(["describe", str(file)]) == 0
    assert "Missing: vae, text_encoder, tokenizer. Type" in capsys.readouterr().out
    made = compress_folder(file, ROUND, tmp_path / "out")
    assert made.measured_bytes == made.predicted_bytes
    assert locate(tmp_path / "out").missing == found.missing
