"""Ways of several models from one noise: led, free, and decoded; nothing stays on the sampler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, UniPCMultistepScheduler

from tests.models import tiny
from vqdq import codecs
from vqdq.errors import Cancelled, UserError
from vqdq.models.compressor import compress
from vqdq.models.following import Following, _fitted, follow, noted
from vqdq.models.students import with_denoiser
from vqdq.models.trajectory import draw
from vqdq.progress import Event
from vqdq.recipe import Recipe
from vqdq.rules import Rule

PROMPTS = ("a red circle", "a blue square")


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: Any = tiny.pipeline(tmp_path_factory.mktemp("following"))
    made.set_progress_bar_config(disable=True)
    made.unet.eval()
    return made


@pytest.fixture(scope="module")
def variant(pipe: Any) -> Any:
    params = codecs.create("uniform", bits=3).params
    rule = Rule(pattern="mid_block.*", method="uniform", params=params)
    return compress(pipe, Recipe(name="coarse", rules=(rule,)))


def test_ways_end_where_the_pipelines_draw(pipe: Any, variant: Any, tmp_path: Path) -> None:
    same = with_denoiser(pipe, "unet", pipe.unet)
    events: list[Event] = []
    found = follow(
        pipe,
        {"coarse": variant, "same": same},
        PROMPTS,
        steps=3,
        guidance=3.0,
        seed=5,
        preview_seconds=np.inf,
        report=events.append,
    )
    assert found.labels == ("reference", "coarse", "same")
    assert found.latents.shape == (3, 2, 3, 4, 8, 8)
    for model, way in zip((pipe, variant), found.latents, strict=False):
        end = draw(model, PROMPTS, steps=3, guidance=3.0, seed=5)
        assert torch.equal(torch.from_numpy(way[:, -1]), end)
    assert found.timesteps == tuple(float(t) for t in pipe.scheduler.timesteps)
    coarse, equal = found.errors
    assert (coarse.label, coarse.samples) == ("coarse", 2)
    # The first step is the same either way, and only there.
    assert coarse.forced_sqnr_db[0] == pytest.approx(coarse.free_sqnr_db[0], abs=1e-3)
    assert coarse.free_sqnr_db[2] < coarse.forced_sqnr_db[2]
    assert np.isinf(equal.forced_sqnr_db).all()
    assert np.isinf(equal.free_sqnr_db).all()
    assert equal.forced_cosine == pytest.approx([1.0] * 3)
    ours, theirs = found.latents[1, :, -1].reshape(2, -1), found.latents[0, :, -1].reshape(2, -1)
    dots = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert coarse.free_cosine[-1] == pytest.approx(dots.mean(), rel=1e-5)
    assert [event.done for event in events] == [0, 1, 2, 3, 4, 5]
    assert found.shown == (0, 1, 2)
    assert found.previews.shape == (3, 3, 16, 16, 3)
    picture = pipe(
        PROMPTS[0],
        num_inference_steps=3,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images[0]
    assert np.abs(found.previews[0, -1] - 255.0 * picture).max() < 1.5
    found.save(tmp_path / "way.npz")
    again = Following.load(tmp_path / "way.npz")
    assert (again.labels, again.prompts, again.shown) == (found.labels, PROMPTS, (0, 1, 2))
    assert np.array_equal(again.latents, found.latents)
    assert np.array_equal(again.previews, found.previews)
    assert again.previewed == "decoded"
    assert [each.label for each in again.errors] == ["coarse", "same"]
    assert np.array_equal(again.errors[0].free_sqnr_db, coarse.free_sqnr_db)


@pytest.mark.parametrize(
    ("budget", "shown"), [(0, ()), (1535, ()), (1536, (2,)), (3072, (0, 2)), (9999, (0, 1, 2))]
)
def test_previews_keep_their_budget(
    pipe: Any, variant: Any, budget: int, shown: tuple[int, ...]
) -> None:
    """Two models of 16 x 16 x 3 bytes a step."""
    found = follow(
        pipe, {"v": variant}, PROMPTS[:1], steps=3, guidance=1.0,
        preview_bytes=budget, preview_seconds=np.inf,
    )  # fmt: skip
    assert found.shown == shown
    assert found.previews.nbytes == 1536 * len(shown) <= budget


def test_colours_are_fitted_where_decoding_takes_too_long(pipe: Any) -> None:
    """A picture that is a linear map of the latents is found again, at every step."""
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(2, 3, 4, 8, 8)).astype(np.float32)
    weights = rng.uniform(-12, 12, size=(4, 3))
    exact = np.moveaxis(latents, -3, -1) @ weights + 128
    shown = exact[0, -1].round().clip(0, 255).astype(np.uint8).repeat(2, 0).repeat(2, 1)
    found = _fitted(latents, latents[0, -1], shown)
    assert found.shape == (2, 3, 8, 8, 3)
    assert np.abs(found - exact.clip(0, 255)).max() < 2
    way = follow(pipe, {}, PROMPTS[:1], steps=2, guidance=1.0, preview_seconds=0.0)
    assert (way.previewed, way.shown, way.previews.shape) == ("linear", (0, 1), (1, 2, 8, 8, 3))


@pytest.mark.parametrize("kind", [EulerAncestralDiscreteScheduler, UniPCMultistepScheduler])
def test_a_step_is_taken_again_with_its_memory_and_its_noise(pipe: Any, kind: Any) -> None:
    other = with_denoiser(pipe, "unet", pipe.unet)
    other.scheduler = kind.from_config(pipe.scheduler.config)
    with noted(other) as turns:
        end = draw(other, PROMPTS, steps=4, guidance=3.0, seed=5)
    assert len(turns) == 4
    assert torch.equal(turns[-1].after, end)
    assert torch.equal(draw(other, PROMPTS, steps=4, guidance=3.0, seed=5), end)
    for turn in turns:
        assert torch.equal(turn.again(turn.prediction), turn.after)
        assert torch.equal(turn.again(turn.prediction), turn.after)
        assert not torch.equal(turn.again(turn.prediction * 1.1), turn.after)
    assert "step" not in other.scheduler.__dict__
    found = follow(
        other, {"same": with_denoiser(other, "unet", pipe.unet)}, PROMPTS, steps=4, guidance=3.0
    )
    assert found.errors[0].forced_cosine == pytest.approx([1.0] * 4)
    assert np.array_equal(found.latents[0], found.latents[1])


def test_cancel_leaves_the_sampler_as_it_was(pipe: Any, variant: Any) -> None:
    def stop(event: Event, /) -> None:
        if event.done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        follow(pipe, {"v": variant}, PROMPTS, steps=1, guidance=1.0, report=stop)
    for model in (pipe, variant):
        assert "step" not in model.scheduler.__dict__
        assert not model.unet._forward_hooks
    with pytest.raises(UserError, match="nothing to draw"):
        follow(pipe, {}, (), steps=1, guidance=1.0)
