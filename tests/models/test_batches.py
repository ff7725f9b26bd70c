"""Batches across steps: each row is what the teacher saw, its prediction is the recorded one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.models import tiny
from vqdq.models.batches import Samples
from vqdq.models.learning import predict
from vqdq.models.trajectory import Trajectories, guided, record

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Trajectories]:
    pipe = tiny.pipeline(tmp_path_factory.mktemp("batches"))
    pipe.set_progress_bar_config(disable=True)
    prompts = ["a red circle", "a blue square", "a red square"]
    return pipe.unet, record(pipe, prompts, steps=4, guidance=3.0, batch_size=2)


def test_mixed_rows_are_predicted_as_they_were_recorded(
    teacher: tuple[nn.Module, Trajectories],
) -> None:
    unet, trajectories = teacher
    samples = Samples(trajectories, CPU)
    assert samples.mixes
    assert samples.num_steps == 4
    batch = samples.draw(6, torch.Generator().manual_seed(0))
    assert batch.guided
    assert batch.output.shape == (12, 4, 8, 8)
    assert set(batch.steps.tolist()) == {0, 1, 2, 3}  # spread, though drawn
    with torch.no_grad():
        torch.testing.assert_close(predict(unet, batch), batch.output, rtol=1e-4, atol=1e-5)


def test_both_halves_belong_to_the_same_picture(teacher: tuple[nn.Module, Trajectories]) -> None:
    _, trajectories = teacher
    batch = Samples(trajectories, CPU).draw(5, torch.Generator().manual_seed(1))
    latents = batch.args[0]
    assert torch.equal(latents[:5], latents[5:])  # guidance doubles the latent
    known = {
        tuple(row.flatten().tolist())
        for call in trajectories.calls
        for row in guided(call.output, call, 3.0)
    }
    blank, told = batch.output.chunk(2)
    ours = {tuple(row.flatten().tolist()) for row in blank + 3.0 * (told - blank)}
    assert ours <= known


def test_the_spread_holds_every_step_alike(teacher: tuple[nn.Module, Trajectories]) -> None:
    _, trajectories = teacher
    batches = Samples(trajectories, CPU).spread(2, 3)
    assert [len(batch.steps) for batch in batches] == [3, 3, 2]
    assert torch.cat([batch.steps for batch in batches]).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_calls_of_different_structure_stay_whole(teacher: tuple[nn.Module, Trajectories]) -> None:
    unet, trajectories = teacher
    changed = trajectories.calls[-1]
    longer = changed.kwargs["encoder_hidden_states"][:, :-3]
    calls = (
        *trajectories.calls[:-1],
        replace(changed, kwargs={**changed.kwargs, "encoder_hidden_states": longer}),
    )
    samples = Samples(replace(trajectories, calls=calls), CPU)
    assert not samples.mixes
    batch = samples.draw(6, torch.Generator().manual_seed(0))
    whole = [call for call in calls if torch.equal(call.output, batch.output)]
    assert len(whole) == 1
    assert batch.steps.tolist() == [whole[0].step] * len(whole[0].prompts)
    assert predict(unet, batch).shape == batch.output.shape
    assert [part.steps[0].item() for part in samples.spread(4, 8)] == [0, 1, 2, 3]


def test_without_guidance_there_is_one_half(tmp_path: Path) -> None:
    pipe = tiny.pipeline(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    trajectories = record(pipe, ["a red circle", "a blue square"], steps=2, guidance=1.0)
    batch = Samples(trajectories, CPU).draw(4, torch.Generator().manual_seed(0))
    assert not batch.guided
    assert batch.output.shape[0] == 4
