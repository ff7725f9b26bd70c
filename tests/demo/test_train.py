"""The training script from nothing to a drawn picture, at a size that takes seconds."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from vqdq.demo import card, dataset, denoiser, evaluate, sizes, train
from vqdq.demo.parallel import Schedule
from vqdq.demo.sizes import Size
from vqdq.errors import UserError

# diffusers' scheduler hands a tensor to numpy.array, which numpy 2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TINY = Size(resolution=32, widths=(16, 16, 16), autoencoder_widths=(4, 4, 4, 8), latent_channels=2)


class DiedError(Exception):
    """A run that was killed."""


@pytest.fixture(name="plan")
def a_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> train.Plan:
    monkeypatch.setitem(sizes.SIZES, "tiny", TINY)
    monkeypatch.setattr(train, "_PICTURES", 4)
    monkeypatch.setattr(train.proxy, "_SCENES", 2)
    short = Schedule(samples=8, seconds=1e9, batch=2, checkpoint_seconds=0)
    monkeypatch.setattr(train.Plan, "autoencoder", property(lambda _: short))
    monkeypatch.setattr(train.Plan, "denoiser", property(lambda _: short))
    return train.Plan(
        output=tmp_path / "model",
        work=tmp_path / "work",
        text_minutes=0.001,
        scenes=6,
        captions=2,
        workers=1,
        size="tiny",
        until="publish",
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(evaluate.load_pipeline(folder).unet.state_dict())


def test_a_stopped_run_goes_on_to_the_same_weights_and_small_files_are_enough(
    plan: train.Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train.run(plan)
    whole = weights(plan.output)
    checked: list[int] = []

    def dies(_plan: Any, *_: Any) -> Any:
        def check(_model: Any, samples: int) -> None:
            checked.append(samples)
            if samples == 4:
                raise DiedError

        return check

    checkpoint = plan.work / "denoiser"
    shutil.rmtree(checkpoint)
    with monkeypatch.context() as patch:
        patch.setattr(train, "_early_check", dies)
        with pytest.raises(DiedError):
            train.run(plan)
    assert checked == [2, 4]
    assert card.stage(checkpoint, batch=2).samples == 4
    train.run(plan)
    again = weights(plan.output)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    # what a machine that lends its card sends back: without pictures and data
    shutil.rmtree(plan.work / "data")
    (plan.work / "pool.npy").unlink()
    shutil.rmtree(plan.output)
    train.run(plan)
    sent = weights(plan.output)
    assert all(torch.equal(whole[name], sent[name]) for name in whole)
    assert not (plan.work / "data").exists()
    pipeline = evaluate.load_pipeline(plan.output)
    assert evaluate.draw(pipeline, ["a red circle"], [0]).shape == (1, 32, 32, 3)
    assert card.parameters(plan.output) == sum(
        tensor.numel()
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)
        for tensor in part.parameters()
    )
    with pytest.raises(UserError, match="size tiny"):
        train.run(train.Plan(output=tmp_path / "model", work=plan.work))


def test_the_command_line_takes_a_size_and_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[train.Plan] = []
    monkeypatch.setattr(train, "run", seen.append)
    train.main([])
    train.main(["--device", "cuda", "--size", "large", "--workers", "8"])
    usual, asked = seen
    assert usual.device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert (asked.device, asked.size, asked.trainers) == ("cuda", "large", 1)
    assert asked.denoiser.batch == 8 * train.Plan(output=Path(), work=Path()).denoiser.batch
    with pytest.raises(SystemExit):
        train.main(["--size", "huge"])


def test_scenes_of_another_resolution_have_the_same_cells() -> None:
    generator = torch.Generator().manual_seed(3)
    scene = dataset.scenes.sample_scene(generator)
    pictures = [
        dataset.scenes.render(scene, torch.Generator().manual_seed(5), side) for side in (128, 256)
    ]
    small, large = (dataset.object_cells(picture, scene) for picture in pictures)
    assert large.shape == (32, 32)
    found = large.reshape(16, 2, 16, 2).any(axis=(1, 3))
    assert (found == small).mean() > 0.97
    assert denoiser.new_denoiser(TINY).config["sample_size"] == 4
