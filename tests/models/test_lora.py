"""LoRA on compressed models: exact on every layer kind, in every form that people download.

Compared with the same adapter on the decoded model (equal bits), and with the adapter merged by
hand into decoded weights (close: another order of sums).
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from tests.models import families, tiny
from tests.models.test_single_file import EVERYTHING, RECIPE
from vqdq.errors import UserError
from vqdq.models.compressor import compress, compress_folder
from vqdq.models.denoisers import denoiser

LINEAR = ["to_q", "to_v", "to_out.0", "proj_out"]
CONVOLUTIONS = ["conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "proj_in"]  # 3x3, 1x1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lora")
    tiny.folder(root / "tiny", dtype=torch.float32)
    return compress_folder(root / "tiny", EVERYTHING, root / "small").output


def opened(folder: Path) -> Any:
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def both(folder: Path) -> tuple[Any, Any]:
    """The compressed pipeline and one of ordinary layers with the same values."""
    dense = opened(folder)
    for part in (dense.unet, dense.vae, dense.text_encoder):
        part.dequantize()
    return opened(folder), dense


def kohya(pipe: Any, path: Path, *, seed: int = 0) -> dict[str, tuple[torch.Tensor, ...]]:
    """Writes an adapter as sd-scripts does, and returns (down, up, alpha / rank) by layer."""
    generator = torch.Generator().manual_seed(seed)
    kinds = {"lora_unet": (pipe.unet, ("to_k", "to_out.0", "conv1", "proj_in"))}
    # Attention of a text encoder is lost between diffusers 0.42.1 and transformers 5.23, in
    # ordinary models as well: only its other layers are compared.
    kinds["lora_te"] = (pipe.text_encoder, ("fc1", "fc2"))
    stored: dict[str, torch.Tensor] = {}
    made: dict[str, tuple[torch.Tensor, ...]] = {}
    for prefix, (model, ends) in kinds.items():
        for name, layer in model.named_modules():
            if not name.endswith(ends):
                continue
            shape = tuple(layer.weight.shape)
            down = torch.randn(2, *shape[1:], generator=generator) * 0.1
            up = torch.randn(shape[0], 2, *(1,) * (len(shape) - 2), generator=generator) * 0.1
            own = (
                name if prefix == "lora_unet" or name.startswith("text_") else f"text_model.{name}"
            )
            key = f"{prefix}_{own.replace('.', '_')}"
            stored |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
            stored[f"{key}.alpha"] = torch.tensor(1.0)
            made[f"{prefix}.{name}"] = (down, up, torch.tensor(0.5))
    save_file(stored, path)
    return made


def merged(pipe: Any, adapters: dict[str, tuple[torch.Tensor, ...]], scale: float) -> None:
    """Adds scale * alpha / rank * up down to the weights of ordinary layers."""
    parts = {"lora_unet": pipe.unet, "lora_te": pipe.text_encoder}
    for place, (down, up, ratio) in adapters.items():
        part, _, name = place.partition(".")
        weight = parts[part].get_submodule(name).weight
        delta = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
        weight.data += scale * ratio * delta


def test_an_adapter_as_it_is_downloaded(folder: Path, tmp_path: Path) -> None:
    packed, dense = both(folder)
    plain = tiny.draw(packed)
    made = kohya(dense, tmp_path / "style.safetensors")
    assert sum(name.startswith("lora_te") for name in made) == 2  # text encoder, packed too
    by_hand = copy.deepcopy(dense.unet), copy.deepcopy(dense.text_encoder)
    for pipe in (packed, dense):
        pipe.load_lora_weights(tmp_path / "style.safetensors", adapter_name="style")
    for scale in (1.0, 0.4):
        for pipe in (packed, dense):
            pipe.set_adapters("style", scale)
        picture = tiny.draw(packed)
        assert torch.equal(picture, tiny.draw(dense))
        other = opened(folder)
        other.unet, other.text_encoder = (copy.deepcopy(part) for part in by_hand)
        merged(other, made, scale)
        assert (picture - tiny.draw(other)).abs().max() < 2e-5 * picture.abs().max()
        assert (picture - plain).abs().max() > 1e-3
    packed.disable_lora()
    assert torch.equal(tiny.draw(packed), plain)
    packed.enable_lora()
    assert torch.equal(tiny.draw(packed), picture)
    packed.delete_adapters("style")
    assert torch.equal(tiny.draw(packed), plain)


@pytest.mark.parametrize("dora", [False, True], ids=["plain", "dora"])
def test_every_kind_of_layer(folder: Path, dora: bool) -> None:
    found = []
    for pipe in both(folder):
        torch.manual_seed(1)
        config = LoraConfig(
            r=2, lora_alpha=3, target_modules=LINEAR + CONVOLUTIONS, init_lora_weights=False,
            use_dora=dora,
        )  # fmt: skip
        pipe.unet.add_adapter(config, adapter_name="all")
        found.append(tiny.draw(pipe))
    assert torch.isfinite(found[0]).all()
    assert torch.equal(found[0], found[1])


def test_one_adapter_takes_the_place_of_another(folder: Path, tmp_path: Path) -> None:
    packed, dense = both(folder)
    for number in (0, 1):
        kohya(dense, tmp_path / f"{number}.safetensors", seed=number)
    packed.load_lora_weights(tmp_path / "0.safetensors", adapter_name="style")
    first = tiny.draw(packed)
    parts: list[dict[str, torch.Tensor]] = []
    for number in (0, 1):
        state, _ = type(packed).lora_state_dict(tmp_path / f"{number}.safetensors")
        parts.append({key: value for key, value in state.items() if key.startswith("unet.")})
    packed.unload_lora_weights()
    scales = {
        key.removesuffix(".lora_A.weight") + ".alpha": 1.0 for key in parts[0] if "_A." in key
    }
    packed.load_lora_into_unet(parts[0], scales, packed.unet, adapter_name="style")
    packed.load_lora_into_unet(parts[1], scales, packed.unet, adapter_name="style", hotswap=True)
    dense.load_lora_into_unet(parts[1], scales, dense.unet, adapter_name="style")
    swapped = tiny.draw(packed)
    assert torch.equal(swapped, tiny.draw(dense))
    assert not torch.equal(swapped, first)


def test_a_refused_merge_leaves_everything_as_it_was(folder: Path, tmp_path: Path) -> None:
    packed, dense = both(folder)
    kohya(dense, tmp_path / "style.safetensors")
    packed.load_lora_weights(tmp_path / "style.safetensors", adapter_name="style")
    packed.set_adapters(["style"], [0.8])
    picture = tiny.draw(packed)
    before = {key: value.clone() for key, value in packed.unet.state_dict().items()}
    for call in (
        lambda: packed.fuse_lora(lora_scale=0.5),  # diffusers rescales before it merges
        lambda: packed.fuse_lora(components=["text_encoder", "unet"], safe_fusing=True),
        lambda: packed.unet.fuse_lora(0.5),
    ):
        with pytest.raises(UserError, match="no adapter can be merged"):
            call()
    after = packed.unet.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert torch.equal(tiny.draw(packed), picture)
    dense.load_lora_weights(tmp_path / "style.safetensors")
    dense.fuse_lora()  # ordinary models still merge


def test_a_pipeline_with_an_adapter_is_not_saved_without_it(folder: Path, tmp_path: Path) -> None:
    packed, dense = both(folder)
    kohya(dense, tmp_path / "style.safetensors")
    packed.load_lora_weights(tmp_path / "style.safetensors", adapter_name="style")
    for part in (packed.unet, packed.text_encoder):
        with pytest.raises(UserError, match="adapter is loaded") as caught:
            part.save_pretrained(tmp_path / "saved")
        assert "unload_lora_weights" in caught.value.remedy
    assert not list((tmp_path / "saved").glob("*.safetensors"))
    packed.unload_lora_weights()
    packed.save_pretrained(tmp_path / "clean")
    name = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "clean" / name).read_bytes() == (folder / name).read_bytes()
    assert torch.equal(tiny.draw(opened(tmp_path / "clean")), tiny.draw(opened(folder)))


@pytest.mark.parametrize("family", ["flux_dev", "stable_diffusion_3"])
def test_other_families(family: str, tmp_path: Path) -> None:
    pipe, call = families.build(family)
    small, dense = compress(pipe, RECIPE), compress(pipe, RECIPE)
    name, model = denoiser(dense)
    model.dequantize()  # type: ignore[operator]
    torch.manual_seed(2)
    config = LoraConfig(
        r=2, lora_alpha=2, init_lora_weights=False,
        target_modules=["to_q", "to_k", "add_q_proj", "proj_mlp", "ff.net.2"],
    )  # fmt: skip
    plain = families.draw(small, call)
    model.add_adapter(config, adapter_name="style")  # type: ignore[operator]
    layers = get_peft_model_state_dict(model, adapter_name="style")
    type(pipe).save_lora_weights(tmp_path, **{f"{name}_lora_layers": layers})
    small.load_lora_weights(tmp_path, adapter_name="style")
    picture = families.draw(small, call)
    assert torch.equal(picture, families.draw(dense, call))
    assert not torch.equal(picture, plain)
    with pytest.raises(UserError, match="no adapter can be merged"):
        small.fuse_lora()
    small.unload_lora_weights()
    assert torch.equal(families.draw(small, call), plain)


def test_an_adapter_that_widens_a_packed_layer_is_refused(tmp_path: Path) -> None:
    pipe, call = families.build("flux_dev")
    small = compress(pipe, RECIPE)
    plain = families.draw(small, call)
    wide = {
        "transformer.x_embedder.lora_A.weight": torch.zeros(2, 32),
        "transformer.x_embedder.lora_B.weight": torch.zeros(32, 2),
    }
    save_file(wide, tmp_path / "control.safetensors")
    with pytest.raises(UserError, match="needs 32 channels, the packed layer has 16") as caught:
        small.load_lora_weights(tmp_path / "control.safetensors")
    assert caught.value.where == "x_embedder"
    assert torch.equal(families.draw(small, call), plain)
