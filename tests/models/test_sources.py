"""What a person types becomes a checked folder, or an error with place and remedy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.models import families, tiny
from vqdq.errors import UserError
from vqdq.models.first_call import first_call
from vqdq.models.generate import generate
from vqdq.models.pipelines import component, describe, load
from vqdq.models.sources import DEMO, demo_folder, locate, presets_folder
from vqdq.models.trajectory import draw


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("sources") / "tiny")


@pytest.fixture
def copied(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "copy"))


def test_folder_is_described_without_weights(model: Path) -> None:
    info = describe(model)
    assert info.title == "tiny"
    assert info.pipeline_class == "StableDiffusionPipeline"
    assert (info.component, info.is_quantized, info.recipe) == ("unet", False, None)
    assert info.resolution == (16, 16)
    assert info.latent_shape == (4, 8, 8)
    assert info.parameters == sum(p.numel() for p in load(model).unet.parameters())
    assert info.bytes == (model / "unet/diffusion_pytorch_model.safetensors").stat().st_size


def test_flux_has_the_size_that_its_pipeline_draws_by_default(tmp_path: Path) -> None:
    pipe, _ = families.flux_dev()
    pipe.save_pretrained(tmp_path)
    assert describe(tmp_path).resolution is None  # without an autoencoder nobody knows
    (tmp_path / "vae").mkdir()
    widths = {"block_out_channels": [8, 8, 8, 8]}
    (tmp_path / "vae" / "config.json").write_text(json.dumps(widths))
    assert describe(tmp_path).resolution == (1024, 1024)
    assert pipe.default_sample_size * 8 == 1024


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("no-such-folder", "does not exist"),
        ("a" * 10_000, "cannot be read"),
        ("nul\0byte", "does not exist"),
        ("", "is no diffusers model"),
    ],
)
def test_what_is_no_model(tmp_path: Path, name: str, what: str) -> None:
    with pytest.raises(UserError, match=what) as caught:
        locate(tmp_path / name if name != "" else tmp_path)
    assert caught.value.remedy


def test_files_and_pickles_are_refused(tmp_path: Path) -> None:
    for name, what in (
        ("model.ckpt", "pickled"),
        ("model.gguf", "quantized already"),
        ("model.safetensors", "not a safetensors file"),
        ("model.txt", "not the folder"),
    ):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(UserError, match=what):
            locate(tmp_path / name)


def test_pickled_weights_are_refused(copied: Path) -> None:
    weights = copied / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(copied / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="pickled") as caught:
        load(copied)
    assert "safetensors" in caught.value.remedy
    (copied / "unet/diffusion_pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="no weight file"):
        load(copied)


def test_a_truncated_file_is_named_on_every_way_in(copied: Path) -> None:
    weights = copied / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for opened in (load, component, describe):
        with pytest.raises(UserError, match="its header promises") as caught:
            opened(copied)
        assert caught.value.where == str(weights)


def test_a_damaged_text_encoder_is_named(copied: Path) -> None:
    weights = copied / "text_encoder/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="not a safetensors file") as caught:
        load(copied)
    assert caught.value.where == str(weights)
    weights.unlink()
    with pytest.raises(UserError, match="cannot draw without text_encoder"):
        load(copied)


def test_faults_of_the_texts(copied: Path) -> None:
    config = copied / "unet/config.json"
    values = json.loads(config.read_text())
    for text, what in (
        ("{", "is not JSON"),
        ("[]", "not a JSON object"),
        (json.dumps({**values, "_class_name": "MyUNet"}), "not part of diffusers"),
        (json.dumps({**values, "block_out_channels": [32, 96]}), "config.json says"),
        (json.dumps({**values, "down_block_types": ["NoBlock"]}), "does not describe"),
    ):
        config.write_text(text)
        with pytest.raises(UserError, match=what) as caught:
            component(copied)
        assert str(copied) in caught.value.where


def test_programs_in_the_folder_are_not_run(copied: Path) -> None:
    index = json.loads((copied / "model_index.json").read_text())
    index["unet"] = ["my_unet", "MyUNet"]
    (copied / "model_index.json").write_text(json.dumps(index))
    (copied / "unet/my_unet.py").write_text("raise SystemExit('this ran')")
    with pytest.raises(UserError, match="not run"):
        load(copied)


def test_a_pipeline_without_a_denoiser(copied: Path) -> None:
    index = json.loads((copied / "model_index.json").read_text())
    index["unet"] = [None, None]
    (copied / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="no unet and no transformer"):
        locate(copied)


def test_half_precision_variant_is_found(model: Path, tmp_path: Path) -> None:
    pipe = load(model).to(torch.float16, silence_dtype_warnings=True)
    pipe.save_pretrained(tmp_path / "halves", variant="fp16")
    assert locate(tmp_path / "halves").variant == "fp16"
    assert torch.equal(tiny.draw(load(tmp_path / "halves")), tiny.draw(load(model)))


def test_hub_ids_offline_say_what_to_do() -> None:
    with pytest.raises(UserError, match="HF_HUB_OFFLINE") as caught:
        locate("nobody/nothing")
    assert "hf download nobody/nothing" in caught.value.remedy


def test_opening_asks_nobody(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr("socket.socket.connect", connect)
    load(model)


def test_demo_and_presets_lie_beside_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert presets_folder().name == "presets"
    assert demo_folder().parts[-2:] == ("assets", "demo")
    assert locate(DEMO).name == "demo"
    monkeypatch.setattr("vqdq.models.sources._REPOSITORY", tmp_path)
    with pytest.raises(UserError, match="not installed"):
        locate(DEMO)


def _emptied(folder: Path, *names: str) -> Path:
    """Leaves components out as diffusers writes it: the index names them, and nothing in them."""
    index = json.loads((folder / "model_index.json").read_text())
    for name in names:
        index[name] = [None, None]
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_without_any_text_encoder_a_prompt_is_refused_and_said_before(copied: Path) -> None:
    folder = _emptied(copied, "text_encoder", "tokenizer")
    source = locate(folder)
    assert (source.missing, source.to_draw) == ((), ("text_encoder", "tokenizer"))
    assert "text_encoder/, tokenizer/" in source.to_complete
    assert "model_index.json" in source.to_complete
    with pytest.raises(UserError, match="cannot draw without text_encoder, tokenizer"):
        load(folder)  # diffusers itself names its own class and nothing to do


def test_a_pipeline_without_any_text_encoder_refuses_a_prompt() -> None:
    pipeline = families.sdxl()[0]  # diffusers loads such a folder: embeddings can be drawn
    asked = {"steps": 1, "guidance": 1.0}
    for drawn in (
        lambda: generate(pipeline, prompt="a circle", seed=0, **asked),
        lambda: first_call(pipeline, "a circle", guidance=1.0),
        lambda: draw(pipeline, ["a circle"], seed=0, **asked),
    ):
        with pytest.raises(UserError, match="text_encoder, text_encoder_2, tokenizer") as caught:
            drawn()
        assert "model_index.json" in caught.value.remedy


def test_one_text_encoder_of_two_is_enough(copied: Path) -> None:
    index = json.loads((copied / "model_index.json").read_text())
    index |= {"text_encoder_2": [None, None], "tokenizer_2": [None, None]}
    (copied / "model_index.json").write_text(json.dumps(index))
    assert locate(copied).to_draw == ()
