"""The judge is right about rendered scenes, at several sizes, for true and for wrong captions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from vqdq.demo import scenes
from vqdq.demo.judge import Verdict, detect, judge


def drawn(count: int, seed: int) -> list[tuple[scenes.Scene, torch.Generator]]:
    generator = torch.Generator().manual_seed(seed)
    splits: tuple[scenes.Split, ...] = ("train", "unseen", "held-out")
    return [(scenes.sample_scene(generator, splits[i % 3]), generator) for i in range(count)]


def wrong_in_one_attribute(scene: scenes.Scene, index: int) -> tuple[str, scenes.Scene]:
    """`scene` with one attribute changed, and the name of the verdict's field that must fail."""

    def next_in(words: tuple[str, ...], word: str) -> str:
        return words[(words.index(word) + 1) % len(words)]

    first, *rest = scene.objects
    vocabulary = scenes.VOCABULARY
    kinds = ("shapes", "colours", "sizes", "background", "relation" if rest else "shapes")
    kind = kinds[index % len(kinds)]
    if kind == "background":
        other = next_in(vocabulary["background"], scene.background)
        return kind, dataclasses.replace(scene, background=other)
    if kind == "relation":
        assert scene.relation is not None
        return kind, dataclasses.replace(
            scene, relation=next_in(vocabulary["relation"], scene.relation)
        )
    field = kind[:-1]
    changed = next_in(vocabulary[field], getattr(first, field))
    item = dataclasses.replace(first, **{field: changed})
    return kind, dataclasses.replace(scene, objects=(item, *rest))


@pytest.mark.parametrize("count", [400, pytest.param(1000, marks=pytest.mark.long)])
def test_right_on_true_and_wrong_captions(count: int) -> None:
    """At least 99.5 % of the true captions pass, and of the wrong ones fail."""
    passed = failed = 0
    for index, (scene, generator) in enumerate(drawn(count, seed=11)):
        picture = scenes.render(scene, generator)
        passed += judge(picture, scene).passed
        failed += not judge(picture, wrong_in_one_attribute(scene, index)[1]).passed
    assert passed >= 0.995 * count
    assert failed >= 0.995 * count


@pytest.mark.parametrize("size", [64, 96, 192])
def test_right_at_other_sizes(size: int) -> None:
    right = sum(
        judge(scenes.render(scene, generator, size), scene).passed
        for scene, generator in drawn(60, seed=size)
    )
    assert right >= 59


def test_every_attribute_is_found_wrong_by_name() -> None:
    for index, (scene, generator) in enumerate(drawn(100, seed=5)):
        picture = scenes.render(scene, generator)
        kind, wrong = wrong_in_one_attribute(scene, index)
        same_twice = len(set(scene.objects)) < len(scene.objects)  # order cannot be told then
        assert not getattr(judge(picture, wrong), kind) or same_twice


def test_an_empty_picture_has_no_objects() -> None:
    picture = np.full((128, 128, 3), scenes.BACKGROUND_COLOURS["grey"], np.uint8)
    scene = scenes.parse("a large red circle on a plain grey background")
    assert judge(picture, scene) == Verdict(
        count=False, shapes=False, colours=False, sizes=False, relation=False, background=True
    )


def test_noise_is_nothing() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    assert not any(judge(noise, scenes.parse(prompt)).passed for prompt in scenes.EXAMPLE_PROMPTS)


def test_a_stray_blot_is_counted() -> None:
    scene = scenes.parse("a small red circle on a plain white background")
    picture = scenes.render(scene, torch.Generator().manual_seed(0))
    picture[4:16, 4:16] = scenes.OBJECT_COLOURS["blue"]
    assert len(detect(picture).objects) == 2
    assert not judge(picture, scene).count


def test_pictures_that_cannot_be_judged_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        detect(np.zeros((32, 32, 3), np.uint8))
