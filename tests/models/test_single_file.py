"""A single file is what diffusers' own converters turn back into every bit of the model."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline
from diffusers.loaders import single_file_utils as theirs
from huggingface_hub import constants
from safetensors.torch import load_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from tests.models import families, tiny
from vqdq.errors import UserError
from vqdq.models.compressor import compress_folder
from vqdq.models.denoisers import denoiser
from vqdq.models.export import check, export_folder, formats_of, single_file
from vqdq.models.export.original import original
from vqdq.models.sources import locate
from vqdq.progress import silent
from vqdq.recipe import Recipe


@pytest.fixture(autouse=True)
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))


State = dict[str, torch.Tensor]
FOUR = [{"pattern": "*", "method": "uniform", "params": {"bits": 4}}]
EVERYTHING = Recipe.from_json(
    {"name": "all", "rules": FOUR, "components": {"vae": {"rules": FOUR}, "text*": {"rules": FOUR}}}
)
RECIPE = Recipe.from_json({"name": "plain", "rules": FOUR})


def text_config(**changes: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        **{
            "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 8, "projection_dim": 32,
        } | changes
    )  # fmt: skip


def vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16, 16), layers_per_block=2, latent_channels=4, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip


def flux(state: State, config: Any) -> State:
    """Their converter is written for 3072 channels: here it is read with the model's own number."""
    inner = config.num_attention_heads * config.attention_head_dim
    code = theirs.convert_flux_transformer_checkpoint_to_diffusers.__code__
    consts = tuple(inner if value == 3072 else value for value in code.co_consts)
    convert = types.FunctionType(code.replace(co_consts=consts), theirs.__dict__, argdefs=(None,))
    return convert(dict(state))


CONVERTERS: dict[str, Callable[[State, Any], State]] = {
    "stable_diffusion_1": lambda state, config: theirs.convert_ldm_unet_checkpoint(state, config),
    "stable_diffusion_2": lambda state, config: theirs.convert_ldm_unet_checkpoint(state, config),
    "sdxl": lambda state, config: theirs.convert_ldm_unet_checkpoint(state, config),
    "flux_dev": flux,
    "flux_schnell": flux,
    "stable_diffusion_3": lambda state, _: theirs.convert_sd3_transformer_checkpoint_to_diffusers(
        {key: value for key, value in state.items() if key.startswith("model.")}
    ),
    "auraflow": lambda state, _: theirs.convert_auraflow_transformer_checkpoint_to_diffusers(
        dict(state)
    ),
}


def written(family: str, folder: Path, **others: torch.nn.Module) -> tuple[Any, State]:
    """The family's denoiser and the single file of its folder with the `others` in it."""
    pipe, _ = families.build(family)
    pipe.to(torch.float16).save_pretrained(folder)
    for name, part in others.items():
        part.half().save_pretrained(folder / name)
    source = locate(folder)
    layout = original(source)
    assert layout is not None
    single_file.write(source, layout, folder / "file.safetensors", silent)
    return denoiser(pipe)[1], load_file(folder / "file.safetensors")


def same(found: State, model: torch.nn.Module) -> None:
    wanted = model.state_dict()
    assert found.keys() == wanted.keys()
    assert [key for key in wanted if not torch.equal(found[key], wanted[key])] == []


@pytest.mark.parametrize("family", CONVERTERS)
def test_their_converter_gives_back_every_bit_of_a_denoiser(family: str, tmp_path: Path) -> None:
    model, state = written(family, tmp_path)
    same(CONVERTERS[family](state, model.config), model)
    if family in ("auraflow", "stable_diffusion_3"):
        return  # not imported; told by its real size alone
    # and our own import, written apart from the export, gives them back as well
    back = locate(tmp_path / "file.safetensors", base=tmp_path)
    name = f"{back.denoiser}/diffusion_pytorch_model.safetensors"
    same(load_file(back.folder / name), model)


def test_an_autoencoder_and_text_encoders_stand_in_the_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    parts = {
        "vae": vae(),
        "text_encoder": CLIPTextModel(text_config()),
        "text_encoder_2": CLIPTextModelWithProjection(text_config(hidden_act="gelu")),
    }
    model, state = written("sdxl", tmp_path, **parts)
    same(theirs.convert_ldm_unet_checkpoint(state, model.config), model)
    same(theirs.convert_ldm_vae_checkpoint(state, parts["vae"].config), parts["vae"])
    found = theirs.convert_ldm_clip_checkpoint(state)
    assert all(key.startswith("text_model.") for key in found)
    same({key.removeprefix("text_model."): found[key] for key in found}, parts["text_encoder"])
    prefix = "conditioner.embedders.1.model."
    found = theirs.convert_open_clip_checkpoint(parts["text_encoder_2"], state, prefix=prefix)
    same(found, parts["text_encoder_2"])


def test_the_text_encoders_of_2_and_3(tmp_path: Path) -> None:
    clip = CLIPTextModel(text_config(hidden_act="gelu"))
    _, state = written("stable_diffusion_2", tmp_path / "2", text_encoder=clip)
    found = theirs.convert_open_clip_checkpoint(clip, state)
    same({key.removeprefix("text_model."): found[key] for key in found}, clip)
    parts = {
        "text_encoder": CLIPTextModelWithProjection(text_config()),
        "text_encoder_2": CLIPTextModelWithProjection(text_config()),
        "text_encoder_3": T5EncoderModel(
            T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
        ),
    }
    _, state = written("stable_diffusion_3", tmp_path / "3", vae=vae(), **parts)
    for number, name in (("", "clip_l"), ("_2", "clip_g")):
        prefix = f"text_encoders.{name}.transformer."
        same(theirs.convert_ldm_clip_checkpoint(state, prefix), parts[f"text_encoder{number}"])
    t5 = theirs.convert_sd3_t5_checkpoint_to_diffusers(state)
    found_keys = parts["text_encoder_3"].load_state_dict(t5, strict=False)
    assert found_keys.unexpected_keys == []
    assert set(found_keys.missing_keys) <= {"encoder.embed_tokens.weight"}  # tied to `shared`


def test_a_compressed_model_draws_the_same_from_its_single_file(tmp_path: Path) -> None:
    tiny.folder(tmp_path / "tiny")
    made = compress_folder(tmp_path / "tiny", EVERYTHING, tmp_path / "small")
    assert len(made.plan.others) == 2
    plain = export_folder(tmp_path / "small", tmp_path / "plain")
    single = export_folder(tmp_path / "small", tmp_path / "small.safetensors", format="single-file")
    assert single.bytes == (tmp_path / "small.safetensors").stat().st_size
    assert (single.error_db, single.left_out) == (None, ())
    ordinary = DiffusionPipeline.from_pretrained(plain.output)
    expected = tiny.draw(ordinary)
    compressed = DiffusionPipeline.from_pretrained(tmp_path / "small")
    for name in ("unet", "vae", "text_encoder"):  # each of them decoded to what it was
        assert not getattr(getattr(ordinary, name), "is_quantized", False)
        getattr(compressed, name).dequantize()
        wanted = getattr(compressed, name).half().float()
        same(getattr(ordinary, name).state_dict(), wanted)
    found = StableDiffusionPipeline.from_single_file(
        str(single.output), config=str(plain.output), local_files_only=True,
        safety_checker=None, feature_extractor=None,
    )  # fmt: skip
    assert torch.equal(tiny.draw(found), expected)
    assert sorted(path.name for path in tmp_path.iterdir() if "part" in path.name) == []
    back = locate(single.output, base=plain.output).folder
    for name in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"):
        one, two = (load_file(root / f"{name}.safetensors") for root in (back, plain.output))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_families_without_an_original_layout_are_refused(tmp_path: Path) -> None:
    for family in ("sana", "pixart_sigma", "kandinsky"):
        pipe, _ = families.build(family)
        pipe.save_pretrained(tmp_path / family)
        assert formats_of(tmp_path / family) == ("diffusers-fp16",)
        with pytest.raises(UserError, match="no original layout") as caught:
            check(tmp_path / family, "x.safetensors", "single-file")
        assert caught.value.remedy == "Use diffusers-fp16."
    families.build("flux_dev")[0].save_pretrained(tmp_path / "flux")
    check(tmp_path / "flux", "x.safetensors", "single-file")
    with pytest.raises(UserError, match=r"ends in \.gguf"):
        check(tmp_path / "flux", "x.bin", "gguf-q8_0")
    with pytest.raises(UserError, match="unknown format"):
        check(tmp_path / "flux", "x.gguf", "gguf-q9_0")
