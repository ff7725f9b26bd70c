"""Which recipe fits a card: SDXL from its configs, sums against the plan's own bytes."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from tests.models.test_inventory import SDXL, VAE
from vqdq.errors import UserError
from vqdq.models.denoisers import layers_of, skeleton
from vqdq.models.fit import CARDS, card_bytes, fit, fit_each
from vqdq.models.footprint import decoding_bytes, drawing_bytes
from vqdq.models.inventory import Census, Inventory, Part, census
from vqdq.models.sources import presets_folder
from vqdq.recipe import Component, load_recipe, resolve
from vqdq.tensors import TensorSpec

GB = 10**9
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
    )


def test_sdxl_on_eight_gigabytes(sdxl: Inventory) -> None:
    found = fit(sdxl, 8 * GB, 1024)
    assert [option.recipe for option in found][:1] == [""]
    assert all(option.fits for option in found)
    three = next(option for option in found if option.recipe == "trellis-3bit")
    plan = resolve(load_recipe("trellis-3bit", presets_folder()), sdxl.component)
    assert three.bits["unet"] == plan.model_bits_per_weight < 3.2
    amounts = {amount.name: amount.bytes for amount in three.amounts}
    assert amounts["text encoders"] == 2 * sum(CLIP.values())
    assert amounts["working memory"] == decoding_bytes(VAE, 1024)
    assert three.phase == "decoding"
    header = plan.predicted_bytes - sum(spec.num_bytes for spec in plan.tensors)
    assert three.cache_bytes is not None
    assert plan.predicted_bytes - header < amounts["weights"]
    assert amounts["weights"] <= plan.predicted_bytes - header + three.cache_bytes
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
