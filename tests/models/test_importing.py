"""A checkpoint in one file becomes the pipeline it was made of, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from huggingface_hub import constants
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.models import families, single_files, tiny
from vqdq.cli import main
from vqdq.errors import UserError
from vqdq.models.compressor import as_recipe, compress_folder
from vqdq.models.export.layout import pieces
from vqdq.models.export.original import original
from vqdq.models.importing import FACTS, imports_folder
from vqdq.models.opening import import_file
from vqdq.models.pipelines import describe, load
from vqdq.models.single_file import open_single_file
from vqdq.models.sources import locate
from vqdq.progress import Event
from vqdq.recipe import Recipe
from vqdq.rules import Rule
from vqdq.tensors import TensorSpec

UNET = "unet/diffusion_pytorch_model.safetensors"
ROUND = Recipe(name="round", rules=(Rule(pattern="mid*", method="uniform"),))


@pytest.fixture(autouse=True)
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("single") / "tiny")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same family with other weights: what comes from it by mistake is seen."""
    return tiny.folder(tmp_path_factory.mktemp("single-base") / "base", seed=1)


@pytest.fixture(scope="module")
def file(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in Stable Diffusion's own layout, with what such files hold besides."""
    text = load_file(model / "text_encoder/model.safetensors")
    unet = single_files.unet(load_file(model / UNET), 1)
    return single_files.save(
        tmp_path_factory.mktemp("single-file") / "dream.safetensors",
        single_files.prefixed("model.diffusion_model.", unet),
        single_files.prefixed(
            "first_stage_model.",
            single_files.vae(load_file(model / "vae/diffusion_pytorch_model.safetensors"), 2),
        ),
        single_files.prefixed("cond_stage_model.transformer.text_model.", text),
        {"model_ema.decay": torch.ones(()), "betas": torch.ones(10)},
    )


def same(found: Path, wanted: Path, names: tuple[str, ...]) -> None:
    for name in names:
        new, old = load_file(found / name), load_file(wanted / name)
        assert new.keys() == old.keys()
        assert all(torch.equal(new[key], old[key]) for key in old)
        assert {key: x.dtype for key, x in new.items()} == {key: x.dtype for key, x in old.items()}


def test_stable_diffusion_comes_back_bit_for_bit(
    model: Path, base: Path, file: Path, tmp_path: Path
) -> None:
    events: list[Event] = []
    source = locate(f"{file}@{base}", report=events.append)
    assert (source.name, source.title, source.denoiser) == ("dream", "dream", "unet")
    assert source.completed_by == str(base)
    assert open_single_file(file).family == "v1"
    weights = (UNET, "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")
    same(source.folder, model, weights)
    done = [event.done for event in events if event.stage == "import"]
    assert done == sorted(done)
    assert done[-1] == sum((model / name).stat().st_size for name in weights)
    assert torch.equal(tiny.draw(load(file)), tiny.draw(load(model)))  # found again without a base
    assert describe(file).parameters == describe(model).parameters
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    assert main(["import", str(file), "--base", str(base), "--json"]) == 0
    recipe = tmp_path / "round.json"
    recipe.write_text(json.dumps(ROUND.to_json()))
    words = ["compress", str(file), "--base", str(base), "--recipe", str(recipe)]
    assert main([*words, "--output", str(ours), "--json"]) == 0
    compress_folder(model, as_recipe(recipe), theirs)
    for name in (UNET, "unet/config.json", "vae/diffusion_pytorch_model.safetensors"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    assert not (ours / FACTS).exists()


def test_an_interrupted_import_goes_on(model: Path, base: Path, file: Path, tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if event.message.startswith("vae: decoder"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        locate(file, base=base, report=stop)
    (folder,) = (item for item in imports_folder().iterdir() if item.is_dir())
    assert (folder / UNET).is_file()
    assert not (folder / "vae").exists()
    assert not list(folder.rglob("*.tmp"))
    before = (folder / UNET).stat().st_mtime_ns
    assert locate(file, base=base).folder == folder
    assert (folder / UNET).stat().st_mtime_ns == before
    out = import_file(file, tmp_path / "own", base=base)
    same(out, model, (UNET,))
    assert [item.name for item in tmp_path.iterdir() if "partial" in item.name] == []
    with pytest.raises(UserError, match="already exists"):
        import_file(file, out, base=base)


def test_sdxl_with_two_text_encoders(tmp_path: Path) -> None:
    torch.manual_seed(3)
    built, _ = families.build("sdxl")
    words = tiny.tokenizer(tmp_path / "words")
    shape = {
        "vocab_size": len(words), "hidden_size": 16, "intermediate_size": 32,
        "num_attention_heads": 2, "max_position_embeddings": 16, "projection_dim": 16,
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
    }  # fmt: skip
    pipe = StableDiffusionXLPipeline(
        vae=tiny.pipeline(tmp_path).vae, unet=built.unet, scheduler=built.scheduler,
        tokenizer=words, tokenizer_2=words, add_watermarker=False,
        text_encoder=CLIPTextModel(CLIPTextConfig(**shape, num_hidden_layers=1)),
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**shape, num_hidden_layers=2)),
    )  # fmt: skip
    pipe.to(torch.float16).save_pretrained(tmp_path / "xl")
    unet = single_files.unet(pipe.unet.state_dict(), 1)
    first = pipe.text_encoder.state_dict()
    second = single_files.open_clip(pipe.text_encoder_2.state_dict())
    file = single_files.save(
        tmp_path / "xl.safetensors",
        single_files.prefixed("model.diffusion_model.", unet),
        single_files.prefixed("first_stage_model.", single_files.vae(pipe.vae.state_dict(), 2)),
        single_files.prefixed("conditioner.embedders.0.transformer.text_model.", first),
        single_files.prefixed("conditioner.embedders.1.model.", second),
    )
    assert open_single_file(file).family == "xl_base"
    found = locate(file, base=tmp_path / "xl").folder
    names = ["text_encoder/model.safetensors", "text_encoder_2/model.safetensors", UNET]
    same(found, tmp_path / "xl", (*names, "vae/diffusion_pytorch_model.safetensors"))
    bare = single_files.save(tmp_path / "unet.safetensors", unet)  # as ComfyUI keeps it
    assert open_single_file(bare).contents == ("the denoiser",)
    same(locate(bare, base=tmp_path / "xl").folder, tmp_path / "xl", tuple(names))


@pytest.mark.parametrize(
    ("name", "family"), [("flux_dev", "flux-dev"), ("flux_schnell", "flux-schnell")]
)
def test_flux_with_fused_projections(tmp_path: Path, name: str, family: str) -> None:
    pipe, _ = families.build(name)
    pipe.to(torch.bfloat16).save_pretrained(tmp_path / "flux")
    state = pipe.transformer.state_dict()
    own = single_files.save(tmp_path / "own.safetensors", single_files.flux(state))
    comfy = single_files.save(
        tmp_path / "comfy.safetensors",
        single_files.prefixed("model.diffusion_model.", single_files.flux(state)),
    )
    plain = single_files.save(tmp_path / "plain.safetensors", state)
    for file in (own, comfy, plain):
        assert open_single_file(file).family == family
        found = locate(file, base=tmp_path / "flux").folder
        same(found, tmp_path / "flux", ("transformer/diffusion_pytorch_model.safetensors",))


@pytest.mark.parametrize(
    ("name", "family"),
    [("stable_diffusion_2", "v1"), ("stable_diffusion_3", "sd3"), ("auraflow", "auraflow")],
)
def test_what_an_export_lays_out_comes_back(tmp_path: Path, name: str, family: str) -> None:
    pipe, _ = families.build(name)
    pipe.to(torch.float16).save_pretrained(tmp_path / "model")
    source = locate(tmp_path / "model")
    layout = original(source)
    assert layout is not None
    state = getattr(pipe, source.denoiser).state_dict()
    specs = {key: TensorSpec.of(key, tensor) for key, tensor in state.items()}
    laid = pieces(specs, layout.denoiser, source.denoiser)
    file = single_files.save(
        tmp_path / "m.safetensors", {piece.key: piece.build(state.__getitem__) for piece in laid}
    )
    # the text width tells SD 2 from SD 1, and a tiny one has another: only its name is not known
    assert open_single_file(file).family == family
    found = locate(file, base=tmp_path / "model").folder
    same(found, tmp_path / "model", (f"{source.denoiser}/diffusion_pytorch_model.safetensors",))


def test_what_does_not_fit_is_said(base: Path, file: Path, tmp_path: Path) -> None:
    flux, _ = families.build("flux_dev")
    flux.save_pretrained(tmp_path / "flux")
    with pytest.raises(UserError, match=r"is missing, .*flux/transformer/config.json says"):
        locate(file, base=tmp_path / "flux")
    with pytest.raises(UserError, match="tokenizers, scheduler and configs are missing") as caught:
        locate(file)
    assert "vqdq import dream.safetensors --base FOLDER" in caught.value.remedy
    assert "holds the denoiser, the VAE, 1 text encoder of a v1 model" in caught.value.what
    with pytest.raises(UserError, match="a base completes a single"):
        locate(base, base=base)
    with pytest.raises(UserError, match="there is no model_index"):
        locate(file, base=tmp_path)
    tensors = load_file(file)
    cases = {
        "extra": (tensors | {"model.diffusion_model.more.weight": torch.ones(2)}, "have no place"),
        "less": ({k: v for k, v in tensors.items() if "time_embed.2" not in k}, "is missing"),
        "text": (
            {k: v[..., :8] if "position_embedding" in k else v for k, v in tensors.items()},
            "its text encoder .* fits none",
        ),
        "lora": ({"unet.down.lora_up.weight": torch.ones(2)}, "is an adapter"),
        "bnb": (tensors | {"a.weight.absmax": torch.ones(2)}, "quantized already, by bitsandbytes"),
        "fp8": ({"a.weight": torch.ones(2).to(torch.float8_e4m3fn)}, "F8_E4M3: it is quantized"),
        "other": ({"a.weight": torch.ones(2)}, "no checkpoint of a text-to-image model"),
    }
    for name, (state, what) in cases.items():
        path = single_files.save(tmp_path / f"{name}.safetensors", state)
        with pytest.raises(UserError, match=what) as caught:
            locate(path, base=base)
        assert caught.value.where == str(path)
        assert caught.value.remedy
    disguised = tmp_path / "disguised.safetensors"
    torch.save({"state_dict": tensors}, disguised)
    with pytest.raises(UserError, match="pickled"):
        locate(disguised, base=base)
