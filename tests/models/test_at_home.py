"""A compressed model among what diffusers offers: casts, offloading, adapters, LoRA, pipelines.

What runs is compared with the same model with its weights decoded: dense layers, same values.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers import (
    AutoPipelineForImage2Image,
    ControlNetModel,
    DiffusionPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
)
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from tests.models import tiny
from vqdq.errors import UserError
from vqdq.layers.quantized import QuantizedLayer
from vqdq.layers.residency import Mode
from vqdq.models.compressor import compress_folder
from vqdq.models.modes import held_bytes, set_mode_
from vqdq.recipe import Recipe

RECIPE = Recipe.from_json(
    {"name": "plain", "rules": [{"pattern": "*", "method": "uniform", "params": {"bits": 4}}]}
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("home")
    tiny.folder(place / "tiny", dtype=torch.float32)
    compress_folder(place / "tiny", RECIPE, place / "small")
    return place / "small"


HALF = 180_000  # bytes: about half of the decoded weights, so that some layers stay and some stream
MODES: tuple[tuple[Mode, int | None], ...] = (
    ("resident", None), ("streaming", None), ("hybrid", HALF),
)  # fmt: skip
both_ways = pytest.mark.parametrize("mode", [MODES[0], MODES[2]], ids=lambda mode: mode[0])


def opened(folder: Path, mode: tuple[Mode, int | None] = MODES[0], **options: Any) -> Any:
    pipe = DiffusionPipeline.from_pretrained(folder, **options)
    pipe.set_progress_bar_config(disable=True)
    set_mode_(pipe, *mode)
    return pipe


@pytest.fixture(scope="module")
def plain(folder: Path) -> torch.Tensor:
    return tiny.draw(opened(folder))


def decoded(folder: Path) -> Any:
    """The same values in ordinary layers."""
    pipe = opened(folder)
    pipe.unet.dequantize()
    return pipe


def packed(pipe: Any) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": layer.get_buffer(key).clone()
        for name, layer in pipe.unet.named_modules()
        if isinstance(layer, QuantizedLayer)
        for key in layer.packed_names
    }


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_is_the_same_as_opening_in_that_dtype(folder: Path, dtype: torch.dtype) -> None:
    pipe = opened(folder)
    before = packed(pipe)
    pipe.to(dtype)
    assert {p.dtype for p in pipe.unet.parameters()} == {dtype}
    assert equal(packed(pipe), before)
    assert pipe.unet.is_quantized
    other = opened(folder, dtype=dtype)
    assert torch.equal(tiny.draw(pipe), tiny.draw(other))


def test_half_and_float_pass_too(folder: Path) -> None:
    unet = opened(folder).unet
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    unet.half().float()  # what is kept is stored in 16 bits: nothing is lost
    assert equal(dict(unet.state_dict()), before)


def streams_with_group_hooks(pipe: Any) -> None:
    pipe.unet.enable_group_offload(
        onload_device=torch.device("cpu"), offload_device=torch.device("cpu"),
        offload_type="leaf_level",
    )  # fmt: skip


# The accelerator is the processor itself: hooks, moves to the meta device and back are all there,
# another kind of memory is not. "sequential" is what `enable_sequential_cpu_offload` calls, which
# itself accepts no processor, for ordinary models neither.
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode[0])
@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.to("cpu"),
        lambda p: p.unet.to(memory_format=torch.channels_last),
        lambda p: p.vae.enable_slicing(),
        lambda p: cpu_offload(p.unet, torch.device("cpu"), offload_buffers=True),
        lambda p: p.enable_model_cpu_offload(device="cpu"),
        streams_with_group_hooks,
        lambda p: (p.unet.enable_gradient_checkpointing(), p.unet.train()),
        lambda p: setattr(p, "unet", copy.deepcopy(p.unet)),
    ],
    ids=[
        "to", "channels_last", "slicing", "sequential", "model", "group",
        "checkpointing", "copy",
    ],
)  # fmt: skip
def test_what_moves_a_model_does_not_change_its_picture(
    folder: Path, plain: torch.Tensor, change: Any, mode: tuple[Mode, int | None]
) -> None:
    pipe = opened(folder, mode)
    change(pipe)
    assert torch.equal(tiny.draw(pipe), plain)
    assert held_bytes(pipe) <= {"resident": 1 << 30, "streaming": 0, "hybrid": HALF}[mode[0]]


@both_ways
def test_inference_mode_and_sliced_attention(
    folder: Path, plain: torch.Tensor, mode: tuple[Mode, int | None]
) -> None:
    pipe = opened(folder, mode)
    with torch.inference_mode():
        assert torch.equal(tiny.draw(pipe), plain)
    pipe.enable_attention_slicing()
    dense = decoded(folder)
    dense.enable_attention_slicing()
    assert torch.equal(tiny.draw(pipe), tiny.draw(dense))


@both_ways
def test_gradients_flow_through_checkpoints(folder: Path, mode: tuple[Mode, int | None]) -> None:
    found = []
    for pipe in (opened(folder, mode), decoded(folder)):
        pipe.unet.enable_gradient_checkpointing()
        pipe.unet.train()
        sample = torch.ones(1, 4, 8, 8, requires_grad=True)
        words = torch.ones(1, 3, 32)
        pipe.unet(sample, 1, encoder_hidden_states=words).sample.square().sum().backward()
        found.append(sample.grad)
    assert torch.equal(found[0], found[1])


def lora(seed: int) -> LoraConfig:
    torch.manual_seed(seed)
    return LoraConfig(
        r=2,
        lora_alpha=4,
        target_modules=["to_q", "to_v", "to_out.0", "conv1", "proj_in"],
        init_lora_weights=False,
    )


@both_ways
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")  # two, on purpose
def test_lora_is_an_exact_side_branch(
    folder: Path, tmp_path: Path, mode: tuple[Mode, int | None]
) -> None:
    teacher = decoded(folder)
    plain = tiny.draw(teacher)
    for number, name in enumerate(("first", "second")):
        teacher.unet.add_adapter(lora(number), adapter_name=name)
        layers = get_peft_model_state_dict(teacher.unet, adapter_name=name)
        StableDiffusionPipeline.save_lora_weights(tmp_path / name, unet_lora_layers=layers)
    pipes = (opened(folder, mode), decoded(folder))
    for pipe in pipes:
        for name in ("first", "second"):
            pipe.load_lora_weights(tmp_path / name, adapter_name=name)
        pipe.set_adapters(["first", "second"], [0.75, -0.5])
    pictures = [tiny.draw(pipe) for pipe in pipes]
    assert torch.equal(pictures[0], pictures[1])
    assert (pictures[0] - plain).abs().max() > 0.01
    with pytest.raises(UserError, match="no adapter can be merged"):
        pipes[0].fuse_lora()
    assert torch.equal(tiny.draw(pipes[0]), pictures[0])  # refused, and nothing is lost
    pipes[0].unload_lora_weights()
    assert torch.equal(tiny.draw(pipes[0]), plain)


def test_fused_projections_are_refused(folder: Path) -> None:
    pipe = opened(folder)
    with pytest.raises(UserError, match="fused"):
        pipe.fuse_qkv_projections()


@both_ways
def test_a_controlnet_and_a_picture_pipeline(folder: Path, mode: tuple[Mode, int | None]) -> None:
    torch.manual_seed(0)
    control = ControlNetModel.from_unet(
        StableDiffusionPipeline.from_pretrained(folder.parent / "tiny").unet
    )
    with torch.no_grad():
        for part in control.controlnet_down_blocks:
            part.weight.normal_()
    picture = torch.rand(1, 3, 64, 64)
    found = []
    for pipe in (opened(folder, mode), decoded(folder)):
        parts = pipe.components | {"controlnet": control}
        steered = StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)
        steered.set_progress_bar_config(disable=True)
        start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        call = {"num_inference_steps": 2, "output_type": "latent", "latents": start}
        found.append(steered("a red circle", image=picture, height=64, width=64, **call).images)
        assert AutoPipelineForImage2Image.from_pipe(pipe).unet is pipe.unet
    assert torch.equal(found[0], found[1])


def adapter(pipe: Any) -> dict[str, Any]:
    """The weights of an IP-Adapter as they are published: numbered over all attention layers."""
    generator = torch.Generator().manual_seed(2)
    width = pipe.unet.config.cross_attention_dim
    tensors: dict[str, torch.Tensor] = {}
    for number, name in enumerate(pipe.unet.attn_processors):
        if name.endswith("attn2.processor"):
            inner = pipe.unet.get_submodule(name.removesuffix(".processor")).inner_dim
            for key in ("k", "v"):
                value = torch.randn(inner, width, generator=generator)
                tensors[f"{number}.to_{key}_ip.weight"] = value
    projected = {
        "proj.weight": torch.randn(4 * width, 16, generator=generator),
        "proj.bias": torch.zeros(4 * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    return {"image_proj": projected, "ip_adapter": tensors}


@both_ways
def test_an_ip_adapter(folder: Path, plain: torch.Tensor, mode: tuple[Mode, int | None]) -> None:
    found = []
    for pipe in (opened(folder, mode), decoded(folder)):
        pipe.unet._load_ip_adapter_weights([adapter(pipe)])
        pipe.set_ip_adapter_scale(0.7)
        generator = torch.Generator().manual_seed(7)
        picture = torch.ones(2, 1, 16)
        call = {"num_inference_steps": 2, "output_type": "latent", "generator": generator}
        found.append(pipe("a red circle", ip_adapter_image_embeds=[picture], **call).images)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], plain)


@pytest.mark.parametrize(
    ("backend", "mode"),
    [
        ("eager", MODES[2]),
        pytest.param("eager", MODES[0], marks=pytest.mark.long),
        pytest.param("aot_eager", MODES[0], marks=pytest.mark.long),
        pytest.param("aot_eager", MODES[2], marks=pytest.mark.long),
        pytest.param("inductor", MODES[0], marks=pytest.mark.long),
        pytest.param("inductor", MODES[2], marks=pytest.mark.long),
    ],
)
def test_compiled_it_draws_the_same(
    folder: Path, plain: torch.Tensor, backend: str, mode: tuple[Mode, int | None]
) -> None:
    torch.compiler.reset()
    pipe = opened(folder, mode)
    pipe.unet.mid_block = torch.compile(pipe.unet.mid_block, backend=backend)
    found = tiny.draw(pipe)
    if backend == "inductor":  # it fuses what stands between the layers, and rounds less often
        torch.testing.assert_close(found, plain, atol=1e-4, rtol=1e-4)
    else:
        assert torch.equal(found, plain)
