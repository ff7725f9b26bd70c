"""Scenes: captions read back, pictures are repeatable, held-out pairs stay out of training."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vqdq.demo import scenes
from vqdq.errors import UserError

seeds = st.integers(min_value=0, max_value=2**31)


@given(seed=seeds, split=st.sampled_from(get_args(scenes.Split)))
def test_caption_and_paraphrase_read_back(seed: int, split: scenes.Split) -> None:
    generator = torch.Generator().manual_seed(seed)
    scene = scenes.sample_scene(generator, split)
    assert scenes.parse(scenes.caption(scene)) == scene
    assert scenes.parse(scenes.paraphrase(scene, generator)) == scene
    assert scenes.split_of(scene) == split


def test_training_never_shows_a_held_out_pair() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = {
        (item.colour, item.shape)
        for _ in range(4000)
        for item in scenes.sample_scene(generator).objects
    }
    everything = {(c, s) for c in scenes.OBJECT_COLOURS for s in scenes.SHAPES}
    assert pairs == everything - scenes.HELD_OUT_PAIRS


def test_held_out_scenes_show_a_held_out_pair() -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(200):
        scene = scenes.sample_scene(generator, "held-out")
        pairs = {(item.colour, item.shape) for item in scene.objects}
        assert pairs & scenes.HELD_OUT_PAIRS


def test_pictures_are_repeatable_and_differ_by_seed() -> None:
    scene = scenes.parse(scenes.EXAMPLE_PROMPTS[0])
    first, again, other = (
        scenes.render(scene, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert first.shape == (128, 128, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("size", [64, 100, 256])
def test_pictures_scale(size: int) -> None:
    scene = scenes.parse(scenes.EXAMPLE_PROMPTS[1])
    picture = scenes.render(scene, torch.Generator().manual_seed(0), size)
    assert picture.shape == (size, size, 3)


def test_example_prompts_are_captions_of_the_grammar() -> None:
    for prompt in scenes.EXAMPLE_PROMPTS:
        assert scenes.caption(scenes.parse(prompt)) == prompt


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a dragon on a plain grey background", '"dragon"'),
        ("a large red circle", "the end of the sentence"),
        ("a large red circle beside a small blue square on a plain grey background", '"beside"'),
        ("a large red circle on a plain purple background", "background colour"),
        ("a large red circle on a plain grey background today", '"today"'),
        ("", "the end of the sentence"),
    ],
)
def test_sentences_outside_the_grammar_are_refused(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        scenes.parse(text)
    assert said in str(caught.value)
    assert caught.value.remedy


def test_a_scene_needs_a_relation_exactly_for_two_objects() -> None:
    item = scenes.Item(size="large", colour="red", shape="circle")
    with pytest.raises(ValueError, match="relation"):
        scenes.Scene(objects=(item, item), relation=None, pattern="plain", background="grey")
