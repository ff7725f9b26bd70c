"""The shipped model: its layout, its size, and that it draws what captions ask."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from vqdq.demo import evaluate, scenes
from vqdq.demo.judge import judge
from vqdq.demo.tokenizer import MAX_TOKENS, words

# diffusers' scheduler hands a tensor to numpy.array, which numpy 2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

FOLDER = Path(__file__).parents[2] / "assets" / "demo"


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    return evaluate.load_pipeline(FOLDER)


def test_widths_are_multiples_of_64() -> None:
    unet = json.loads((FOLDER / "unet" / "config.json").read_text())
    encoder = json.loads((FOLDER / "text_encoder" / "config.json").read_text())
    widths = [*unet["block_out_channels"], encoder["hidden_size"], encoder["intermediate_size"]]
    assert all(width % 64 == 0 for width in widths)


def test_at_most_60_megabytes() -> None:
    size_bytes = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    assert size_bytes <= 60e6


def test_plain_loading_gives_one_precision() -> None:
    loaded = StableDiffusionPipeline.from_pretrained(FOLDER, local_files_only=True)
    parts = (loaded.unet, loaded.vae, loaded.text_encoder)
    assert {part.dtype for part in parts} == {torch.float32}
    assert loaded.vae_scale_factor == 8


def test_tokenizer_knows_the_words(pipeline: StableDiffusionPipeline) -> None:
    assert pipeline.tokenizer.model_max_length == MAX_TOKENS
    assert all(len(pipeline.tokenizer(word)["input_ids"]) == 3 for word in words())


def test_draws_what_captions_ask(pipeline: StableDiffusionPipeline) -> None:
    """At least 9 of 12 captions it never saw; `vqdq.demo.evaluate` measures the rest."""
    wanted = evaluate.evaluation_scenes(12)
    captions = [scenes.caption(scene) for scene in wanted]
    pictures = evaluate.draw(pipeline, captions, list(range(12)))
    assert pictures.shape == (12, 128, 128, 3)
    right = [judge(picture, scene).passed for picture, scene in zip(pictures, wanted, strict=True)]
    wrong = [
        judge(picture, scene).passed
        for picture, scene in zip(pictures, wanted[1:] + wanted[:1], strict=True)
    ]
    assert sum(right) >= 9
    assert sum(wrong) <= 1


def test_same_seed_same_picture(pipeline: StableDiffusionPipeline) -> None:
    prompt = scenes.EXAMPLE_PROMPTS[0]
    first, again, other = (evaluate.draw(pipeline, [prompt], [seed])[0] for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
