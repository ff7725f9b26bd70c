"""Text encoders and autoencoders: exact bytes, equal bits however they are opened, never random."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, PixArtAlphaPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, T5Config, T5EncoderModel
from transformers.quantizers import auto

from tests.models import families, tiny
from vqdq.errors import Cancelled, UserError
from vqdq.layers.quantized import QuantizedLayer
from vqdq.models.checkpoint import verify
from vqdq.models.compressor import CompressionResult, compress, compress_folder, plan
from vqdq.models.export import export_folder
from vqdq.models.pipelines import load
from vqdq.models.text_hub import register
from vqdq.progress import Event
from vqdq.recipe import Recipe
from vqdq.tensors import safetensors_bytes

FOUR = {"method": "uniform", "params": {"bits": 4, "clip": "absmax"}}
PLAIN = {
    "name": "tiny",
    "rules": [{"pattern": "conv_*", "method": None}, {"pattern": "*", **FOUR}],
}
EVERYTHING: dict[str, Any] = {
    **PLAIN,
    "components": {
        "text_encoder*": {"rules": [{"pattern": "*", **FOUR}]},
        "vae": {
            "rules": [{"pattern": "decoder.*", **FOUR}, {"pattern": "post_quant_conv", **FOUR}]
        },
    },
}
RECIPE = Recipe.from_json(EVERYTHING)
TEXT, VAE = "text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("components") / "tiny")


@pytest.fixture(scope="module")
def made(model: Path) -> CompressionResult:
    return compress_folder(model, RECIPE, model.parent / "small")


def packed(model: torch.nn.Module) -> dict[str, QuantizedLayer]:
    return {name: m for name, m in model.named_modules() if isinstance(m, QuantizedLayer)}


def decoded(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every tensor of a model, packed weights as they decode."""
    layers = packed(model)
    inner = {f"{name}.{key}" for name, layer in layers.items() for key in layer.packed_names}
    plain = {key: t for key, t in model.state_dict().items() if key not in inner}
    return plain | {f"{name}.weight": layer.dense(torch.float32) for name, layer in layers.items()}


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    one, two = decoded(first), decoded(second)
    return one.keys() == two.keys() and all(torch.equal(t, two[key]) for key, t in one.items())


def words(model: CLIPTextModel | T5EncoderModel) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([[0, 3, 5, 2, 1]])).last_hidden_state


def test_every_component_has_the_planned_bytes(made: CompressionResult, model: Path) -> None:
    facts = json.loads((made.output / "vqdq.json").read_text())["other_components"]
    assert [other.component.name for other in made.plan.others] == list(facts)
    for other, name in zip(made.plan.others, (TEXT, VAE), strict=True):
        size = (made.output / name).stat().st_size
        told = facts[other.component.name]
        assert size == other.predicted_bytes == told["weight_bytes"] < other.reference_bytes
        assert size < (model / name).stat().st_size
        assert [row["name"] for row in told["layers"]] == [i.layer.name for i in other.layers]
        halves = [replace(spec, dtype=torch.float16) for spec in other.component.tensors]
        assert other.reference_bytes == safetensors_bytes(halves, {"format": "pt"})
    vae = made.plan.others[1]
    quantized = {item.layer.name for item in vae.quantized}
    assert {n.partition(".")[0] for n in quantized} == {"decoder", "post_quant_conv"}
    assert len(quantized) < len(vae.layers)
    found = verify(made.output)
    assert found.ok, found.problems
    plans = (made.plan, *made.plan.others)
    assert found.layers == sum(len(each.quantized) for each in plans)
    assert made.plan.total_bytes == sum(each.predicted_bytes for each in plans)


def test_disk_memory_and_both_libraries_agree(
    made: CompressionResult, model: Path, tmp_path: Path
) -> None:
    small = compress(load(model), RECIPE)
    opened = DiffusionPipeline.from_pretrained(made.output)
    alone = CLIPTextModel.from_pretrained(made.output / "text_encoder")
    assert same(small.text_encoder, opened.text_encoder)
    assert same(small.vae, opened.vae)
    assert same(alone, opened.text_encoder)
    assert torch.equal(words(small.text_encoder), words(opened.text_encoder))
    assert not torch.equal(words(small.text_encoder), words(load(model).text_encoder))
    latent = tiny.draw(opened)
    assert torch.equal(latent, tiny.draw(small))
    assert torch.equal(opened.vae.decode(latent).sample, small.vae.decode(latent).sample)
    for number, pipe in enumerate((small, opened)):
        pipe.save_pretrained(tmp_path / str(number))
        for name in (TEXT, VAE):
            assert (tmp_path / str(number) / name).read_bytes() == (made.output / name).read_bytes()
    assert same(load(tmp_path / "1").text_encoder, alone)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_dtype_reaches_everything_but_packed_tensors(
    made: CompressionResult, dtype: torch.dtype
) -> None:
    text = CLIPTextModel.from_pretrained(made.output / "text_encoder", dtype=dtype)
    stored = load_file(made.output / TEXT)
    for name, layer in packed(text).items():
        assert layer.weight.dtype == layer.bias.dtype == dtype
        for key, tensor in layer.packed.tensors.items():
            assert torch.equal(tensor, stored[f"{name}.{key}"])
    assert words(text).dtype == text.dtype == dtype
    assert text.half().dtype == torch.float16
    assert all(
        torch.equal(t, stored[f"{name}.{key}"])
        for name, layer in packed(text.float()).items()
        for key, t in layer.packed.tensors.items()
    )


def test_without_the_import_transformers_fails_loudly(
    made: CompressionResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(auto.AUTO_QUANTIZER_MAPPING, "vqdq")
    monkeypatch.delitem(auto.AUTO_QUANTIZATION_CONFIG_MAPPING, "vqdq")
    for kind, part in ((CLIPTextModel, "text_encoder"), (DiffusionPipeline, "")):
        with pytest.raises(RuntimeError, match="mismatch"):
            kind.from_pretrained(made.output / part)
    with monkeypatch.context() as looking_away:
        report = "transformers.modeling_utils.log_state_dict_report"
        looking_away.setattr(report, lambda *_, **__: None)
        with pytest.raises(UserError, match="0 of 6 packed layers") as caught:
            load(made.output)
    assert caught.value.where == "text_encoder"
    register()
    assert packed(CLIPTextModel.from_pretrained(made.output / "text_encoder"))


def test_decoded_folders_are_ordinary_ones(made: CompressionResult, tmp_path: Path) -> None:
    export_folder(made.output, tmp_path / "plain")
    opened, plain = load(made.output), load(tmp_path / "plain")
    for name in ("text_encoder", "vae"):
        assert not packed(getattr(plain, name))
        halves = {key: t.half() for key, t in decoded(getattr(opened, name)).items()}
        shown = getattr(plain, name).state_dict()
        assert shown.keys() == halves.keys()
        assert all(torch.equal(shown[key].half(), t) for key, t in halves.items())
        config = json.loads((tmp_path / "plain" / name / "config.json").read_text())
        assert "quantization_config" not in config
        source = made.output.parent / "tiny"
        for file in (TEXT, VAE):
            assert load_file(tmp_path / "plain" / file).keys() == load_file(source / file).keys()


def test_damaged_text_encoders_are_named(made: CompressionResult, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(made.output, tmp_path / "copy"))
    tensors = load_file(copied / TEXT)
    key = next(key for key in tensors if key.endswith(".codes"))
    held = tensors.pop(key)
    for changed in ({}, {key: held.half()}, {key: held[:-1].clone()}):
        save_file({**tensors, **changed}, copied / TEXT, metadata={"format": "pt"})
        with pytest.raises(UserError) as caught:
            CLIPTextModel.from_pretrained(copied / "text_encoder")
        assert caught.value.where == key
        assert any("text_encoder" in problem for problem in verify(copied).problems)


def test_a_stopped_run_goes_on_in_the_text_encoder(made: CompressionResult, model: Path) -> None:
    target, first = model.parent / "resumed", len(made.plan.quantized)
    seen: list[int] = []

    def stop(event: Event, /) -> None:
        if event.stage == "encode":
            seen.append(event.done)
            assert event.total in (first, first + 26)
            if event.done == first + 2:
                raise Cancelled

    with pytest.raises(Cancelled):
        compress_folder(model, RECIPE, target, report=stop)
    seen.clear()
    again = compress_folder(model, RECIPE, target, report=lambda event: seen.append(event.done))
    for path in made.output.rglob("*"):
        if path.is_file():
            assert (again.output / path.relative_to(made.output)).read_bytes() == path.read_bytes()


def t5() -> families.Built:
    torch.manual_seed(0)
    pipe, call = families.pixart_alpha()
    settings = T5Config(vocab_size=40, d_model=24, d_ff=48, d_kv=8, num_layers=2, num_heads=3)
    text = T5EncoderModel(settings).eval()
    return PixArtAlphaPipeline(**{**pipe.components, "text_encoder": text}), call


def test_t5_stays_tied_and_keeps_its_wide_layers(tmp_path: Path) -> None:
    pipe, _ = t5()
    pipe.save_pretrained(tmp_path / "source")
    recipe = Recipe.from_json(
        {**PLAIN, "components": {"text_encoder": {"rules": [{"pattern": "*", **FOUR}]}}}
    )
    out = compress_folder(tmp_path / "source", recipe, tmp_path / "small").output
    stored = load_file(out / TEXT)
    assert "shared.weight" in stored
    assert "encoder.embed_tokens.weight" not in stored
    assert (out / TEXT).stat().st_size == plan(pipe, recipe).others[0].predicted_bytes
    small = compress(pipe, recipe).text_encoder
    opened = T5EncoderModel.from_pretrained(out / "text_encoder")
    assert opened.encoder.embed_tokens.weight is opened.shared.weight
    assert small.encoder.embed_tokens.weight is small.shared.weight
    assert same(small, opened)
    assert torch.equal(words(small), words(opened))
    narrow = T5EncoderModel.from_pretrained(out / "text_encoder", dtype=torch.float16)
    wide = narrow.encoder.block[0].layer[1].DenseReluDense.wo
    assert (wide.weight.dtype, wide.packed.tensors["scales"].dtype) == (
        torch.float32, torch.float16,
    )  # fmt: skip
    assert narrow.encoder.block[0].layer[0].SelfAttention.q.weight.dtype == torch.float16
    assert (words(narrow).float() - words(opened)).abs().max() < 0.02
    small.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (out / TEXT).read_bytes()


@pytest.mark.parametrize(
    ("section", "what"),
    [
        ({"text_encoder_2": {"rules": [{"pattern": "*", **FOUR}]}}, "no component matches"),
        ({"unet": {"rules": [{"pattern": "*", **FOUR}]}}, "is the denoiser"),
        ({"vae": {"rules": [{"pattern": "nothing", **FOUR}]}}, "no layer of the vae matches"),
    ],
)
def test_sections_that_fit_nothing(model: Path, section: dict[str, Any], what: str) -> None:
    recipe = Recipe.from_json({**PLAIN, "components": section})
    for given in (model, load(model)):
        with pytest.raises(UserError, match=what):
            plan(given, recipe)


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ({"rules": [{"pattern": "*", **FOUR}], "calibration": {}}, "only the denoiser can"),
        ({"rules": [{"pattern": "*", "method": "gptq"}]}, "needs calibration"),
        (
            {"rules": [{"pattern": "*", **FOUR, "activation": {"method": "dynamic"}}]},
            "in the denoiser only",
        ),
        ({"rules": []}, "no rules"),
        ({"rule": []}, 'unknown key "rule"'),
    ],
)
def test_what_only_a_denoiser_has(entry: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError, match=what):
        Recipe.from_json({**PLAIN, "components": {"vae": entry}})


def test_sections_by_specificity_and_old_digests() -> None:
    two = {"method": "uniform", "params": {"bits": 2}}
    given = {
        "text_*": {"rules": [{"pattern": "*", "method": None}]},
        "text_encoder_2": {"rules": [{"pattern": "*", **FOUR}]},
        "text_encoder*": {"rules": [{"pattern": "*", **two}]},
    }
    recipe = Recipe.from_json({**PLAIN, "components": given})
    turned = Recipe.from_json({**PLAIN, "components": dict(reversed(given.items()))})
    assert recipe.digest == turned.digest != Recipe.from_json(PLAIN).digest
    assert "components" not in Recipe.from_json(PLAIN).to_json()
    assert Recipe.from_json(recipe.to_json()) == recipe == turned
    chosen = {
        n: recipe.of_component(n) for n in ("text_encoder_2", "text_encoder", "text_x", "vae")
    }
    methods = [None if r is None else r.rules[0].params for r in chosen.values()]
    assert methods[0] == RECIPE.components[0].rules[0].params
    assert (methods[1].to_json()["bits"], methods[2], chosen["vae"]) == (2, None, None)
