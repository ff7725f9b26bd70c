"""Which recipe fits a card: SDXL from its configs, sums against the plan's own bytes."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from tests.models import tiny
from tests.models.test_inventory import SDXL, VAE
from vqdq.also import also
from vqdq.errors import UserError
from vqdq.models.compressor import as_recipe, plan
from vqdq.models.denoisers import layers_of, skeleton
from vqdq.models.fit import CARDS, card_bytes, fit, fit_each
from vqdq.models.footprint import decoding_bytes, drawing_bytes
from vqdq.models.inventory import Census, Inventory, Part, census, inventory
from vqdq.models.parts import read_in
from vqdq.models.sources import presets_folder
from vqdq.models.text_parts import file_specs, text_skeleton
from vqdq.recipe import Component, load_recipe, resolve
from vqdq.tensors import TensorSpec

GB = 10**9
T5 = 4_762_310_656  # parameters of T5-XXL's encoder
CLIP = {"text_encoder": 123_060_480, "text_encoder_2": 694_659_840}  # parameters of SDXL's


@pytest.fixture(scope="module")
def sdxl() -> Inventory:
    """SDXL as its published configs describe it: no file, no weight."""
    unet = skeleton(SDXL)
    component = Component(
        name="unet",
        layers=layers_of(unet),
        tensors=tuple(TensorSpec.of(key, value) for key, value in unet.state_dict().items()),
    )
    with torch.device("meta"):
        vae: Any = diffusers.AutoencoderKL.from_config(VAE)

    def part(name: str, kind: str, counted: Census, config: dict[str, Any]) -> Part:
        size = 2 * counted.parameters
        return Part(
            name=name,
            kind=kind,
            census=counted,
            dtypes={"float16": size},
            bytes=size,
            config=config,
        )

    encoders = [
        part(name, "CLIPTextModel", Census(parameters=count, convolution_weights=0), {})
        for name, count in CLIP.items()
    ]
    return Inventory(
        reference="sdxl",
        title="sdxl",
        pipeline_class="StableDiffusionXLPipeline",
        denoiser="unet",
        parts=(
            part("unet", "UNet2DConditionModel", census(unet), SDXL),
            *encoders,
            part("vae", "AutoencoderKL", census(vae), VAE),
        ),
        component=component,
        resolution=(1024, 1024),
        openers={"text_encoder_3": t5},
    )


@lru_cache(maxsize=1)
def t5() -> Component:
    """T5-XXL's encoder as published (google/t5-v1_1-xxl), by the names of its file."""
    ghost = text_skeleton(
        "T5EncoderModel",
        {"vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24,
         "num_heads": 64, "feed_forward_proj": "gated-gelu"},
        where="t5",
    )  # fmt: skip
    return read_in("text_encoder_3", "transformers", ghost, file_specs(ghost), "t5").component


@pytest.fixture(scope="module")
def with_t5(sdxl: Inventory) -> Inventory:
    """SDXL with one large text encoder in place of its own."""
    part = Part(
        name="text_encoder_3",
        kind="T5EncoderModel",
        census=Census(parameters=T5, convolution_weights=0),
        dtypes={"float16": 2 * T5},
        bytes=2 * T5,
    )
    return replace(sdxl, parts=(sdxl.parts[0], part, sdxl.parts[-1]))


def test_sdxl_on_eight_gigabytes(sdxl: Inventory) -> None:
    found = fit(sdxl, 8 * GB, 1024)
    assert [option.recipe for option in found][:1] == [""]
    assert all(option.fits for option in found)
    three = next(option for option in found if option.recipe == "trellis-3bit")
    three_bits = resolve(load_recipe("trellis-3bit", presets_folder()), sdxl.component)
    assert three.bits["unet"] == three_bits.model_bits_per_weight < 3.2
    amounts = {amount.name: amount.bytes for amount in three.amounts}
    assert amounts["text encoders"] == 2 * sum(CLIP.values())
    assert amounts["working memory"] == decoding_bytes(VAE, 1024)
    assert three.phase == "decoding"
    header = three_bits.predicted_bytes - sum(spec.num_bytes for spec in three_bits.tensors)
    assert three.cache_bytes is not None
    assert three_bits.predicted_bytes - header < amounts["weights"]
    assert amounts["weights"] <= three_bits.predicted_bytes - header + three.cache_bytes
    assert "= " in three.sum
    assert three.sum.endswith("of 8 GB, estimated")


def test_less_memory_leaves_fewer_ways_and_says_what_the_least_is(sdxl: Inventory) -> None:
    counts = {memory: fit(sdxl, memory * GB, 1024) for memory in (2, 4, 6, 10, 24)}
    ranks = [0 if found[0].fits else -1 for found in counts.values()]
    assert ranks == sorted(ranks)
    for memory, found in counts.items():
        assert all(option.card_bytes == memory * GB for option in found)
        if found[0].fits:
            assert all(option.total_bytes <= memory * GB for option in found)
    assert counts[24][0].mode == ""
    assert not counts[24][0].one_at_a_time
    # In 16 bits alone the denoiser takes 5.1 GB, so that 4 GB need fewer bits.
    assert counts[4][0].recipe in ("rtn-8bit", "trellis-4bit")
    least = fit(sdxl, GB // 2, 1024)
    assert len(least) == 1
    assert not least[0].fits
    assert least[0].total_bytes > GB // 2
    assert drawing_bytes(SDXL, 128, 1024) < GB
    cards = [GB // 2, *(memory * GB for memory in counts)]
    assert fit_each(sdxl, cards, 1024) == (least[0], *(found[0] for found in counts.values()))


def test_packed_weights_wait_in_main_memory_where_the_recipe_fits_in_no_other_way(
    sdxl: Inventory,
) -> None:
    """Every amount again from the plan: what is stored, two buffers, and what one layer takes."""
    for name, card, side in (("rtn-8bit", 2 * GB, 1024), ("trellis-4bit", 3 * GB // 2, 512)):
        ready = resolve(load_recipe(name, presets_folder()), sdxl.component)
        counts = {item.layer.name: item.layer.shape.count for item in ready.quantized}
        packed = {item.layer.name: item.storage.total_bytes for item in ready.quantized}
        assert sum(packed.values()) > 0.7 * ready.predicted_bytes
        rest = sum(math.prod(spec.shape) for spec in ready.tensors) - sum(
            math.prod(spec.shape) for item in ready.quantized for spec in item.storage.tensors
        )
        streamed = 2 * rest + sum(packed.values()) + 6 * max(counts.values())
        working = drawing_bytes(SDXL, side // 8, side)
        assert streamed + working > card  # so that it fits in no mode, not even alone on the card
        found = next(option for option in fit(sdxl, card, side) if option.recipe == name)
        assert (found.offload, found.mode, found.one_at_a_time) == (True, "streaming", True)
        assert found.how == "packed weights in main memory"
        drawing = 2 * rest + 4 * max(counts.values())
        drawing += max(packed[key] + 6 * counts[key] for key in counts)  # fp32, then fp16
        vae = 2 * sdxl.parts[-1].census.parameters
        phases = drawing + working, vae + decoding_bytes(VAE, side), 2 * CLIP["text_encoder_2"]
        assert found.total_bytes == max(phases) <= card
        assert found.waiting_bytes == sum(packed.values())
        moved = 30 * found.waiting_bytes
        assert found.transfer_seconds == pytest.approx(moved / 25e9)
        why = " ".join(found.reasons)
        assert (
            f"weights ({found.waiting_bytes / 1e9:.1f} GB) wait in main memory, each layer" in why
        )
        assert f"on the card it would take at least {(streamed + working) / 1e9:.1f} GB" in why
        assert f"Copying takes {moved / 25e9:.1f} s a picture, estimated at 25 GB/s" in why
        assert "(PCIe 4.0 x16, assumed)" in why
        assert found.opening == (
            'pipe = vqdq.load("DIR", mode="streaming", offload=True).to(torch.float16);'
            " pipe.enable_model_cpu_offload()"
        )
    assert not any(option.offload for option in fit(sdxl, 4 * GB, 1024))


def test_packed_text_encoders_wait_too(with_t5: Inventory) -> None:
    ways = [each for card in (20, 30) for each in fit(with_t5, card * GB // 10, 512)]
    away = next(each for each in ways if each.offload)
    asked = resolve(
        also(load_recipe(away.recipe, presets_folder()), away.also), with_t5.component, [t5()]
    )
    parts = (asked, *asked.others)
    assert away.waiting_bytes == sum(
        item.storage.total_bytes for part in parts for item in part.quantized
    )
    alike = [each for each in ways if each.recipe == away.recipe and not each.offload]
    assert all(each.card_bytes > away.card_bytes for each in alike)


def test_what_cannot_be_answered(sdxl: Inventory) -> None:
    with pytest.raises(UserError, match="no whole number of latents"):
        fit(sdxl, 8 * GB, 1025)
    for text, memory in (("8 GB · RTX 4060", 8 * GB), ("600MB", 600 * 10**6), ("11", 11 * GB)):
        assert card_bytes(text) == memory
    for text in ("big", "0 GB", "GB", "1e9"):
        with pytest.raises(UserError, match="no memory of a card"):
            card_bytes(text)
    assert [card_bytes(f"{gigabytes} GB") for _, gigabytes in CARDS] == [
        gigabytes * GB for _, gigabytes in CARDS
    ]


def test_a_large_text_encoder_is_packed_where_it_buys_something(with_t5: Inventory) -> None:
    """9.5 GB of T5 fit no card of 8 GB, whatever the denoiser gets."""
    found = fit(with_t5, 8 * GB, 1024)
    assert found
    assert all(option.also == ("text_encoder*=trellis:bits=4",) for option in found)
    assert [option.recipe for option in found] == [
        "rtn-8bit",
        "trellis-4bit",
        "trellis-3bit",
        "trellis-2bit",
    ]
    assert {option.quality for option in found[:2]} == {"Hard to tell from 16 bits"}
    three = found[2]
    recipe = also(load_recipe("trellis-3bit", presets_folder()), three.also)
    asked = resolve(recipe, with_t5.component, [t5()])
    assert three.file_bytes == {
        "unet": asked.predicted_bytes,
        "text_encoder_3": asked.others[0].predicted_bytes,
    }
    assert three.bits["text_encoder_3"] == asked.others[0].model_bits_per_weight
    # All but the embedding at 4 bits (and a scale a row), the embedding in 16.
    words, rows = 32128 * 4096, 24 * (4 * 4096 + 2 * 10240 + 4096)
    amounts = {amount.name: amount.bytes for amount in three.amounts}
    packed = (T5 - words) / 2 + 2 * words
    assert packed < amounts["text encoders"] < packed + 4 * rows + 4e6
    assert not three.one_at_a_time
    assert f"{amounts['text encoders'] / 1e9:.1f} GB instead of 9.5 GB" in " ".join(three.reasons)
    assert "Without that it would take 9.5 GB." in " ".join(three.reasons)
    assert three.mode in ("hybrid", "streaming")  # "resident" would keep T5 decoded
    # Of enough memory for T5 in 16 bits, packing it is offered beside that: more stays on the card.
    roomy = fit(with_t5, 12 * GB, 1024)
    plain = [option for option in roomy if option.recipe == "trellis-4bit"]
    assert [bool(option.also) for option in plain] == [False, True]
    assert "Without that it would fit only" in " ".join(plain[1].reasons)
    assert not any(option.also for option in fit(with_t5, 48 * GB, 1024))


def test_what_is_offered_is_what_a_plan_of_the_folder_says(tmp_path: Path) -> None:
    pipe: Any = tiny.pipeline(tmp_path)
    text = {**pipe.text_encoder.config.to_dict(), "intermediate_size": 512, "num_hidden_layers": 9}
    pipe.text_encoder = CLIPTextModel(CLIPTextConfig(**text))
    pipe.to(torch.float16).save_pretrained(tmp_path / "model")
    offers = [
        option
        for card in (1_200_000, 1_300_000)
        for option in fit(inventory(tmp_path / "model"), card, 16)
        if option.also
    ]
    last = max(offers, key=lambda option: len(option.also))
    assert len(last.also) == 2
    recipe = also(as_recipe(last.recipe), last.also)
    made = plan(tmp_path / "model", recipe)
    parts = (made, *made.others)
    assert last.file_bytes == {part.component.name: part.predicted_bytes for part in parts}
    assert len(parts) == 3
