"""Errors along a trajectory against closed forms and against the teacher itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.models import tiny
from vqdq.metrics import trajectory as metric
from vqdq.models.denoisers import denoiser
from vqdq.models.trajectory import Call, Trajectories, record


class _Shifted(nn.Module):
    """Returns its input plus `blank` on the first half of the batch and `told` on the second."""

    def __init__(self, blank: float, told: float) -> None:
        super().__init__()
        self.blank, self.told = blank, told

    def forward(self, sample: torch.Tensor) -> tuple[torch.Tensor]:
        half = len(sample) // 2
        return (torch.cat([sample[:half] + self.blank, sample[half:] + self.told]),)


def _calls(steps: int = 3, prompts: int = 2) -> Trajectories:
    source = torch.Generator().manual_seed(0)
    calls: list[Call] = []
    for step in range(steps):
        sample = torch.randn(2 * prompts, 4, 8, 8, generator=source) * (step + 1)
        calls.append(
            Call(
                step=step,
                timestep=float(step),
                prompts=tuple(range(prompts)),
                args=(sample,),
                kwargs={},
                output=sample.clone(),
            )
        )
    return Trajectories(
        prompts=("a",) * prompts,
        steps=steps,
        guidance=3.0,
        calls=tuple(calls),
        latents=torch.zeros(prompts, 4, 8, 8),
    )


def test_a_known_shift_gives_the_closed_form() -> None:
    calls = _calls()
    found = metric.sqnr_by_step(_Shifted(0.1, 0.2), calls)
    for step, call in enumerate(calls.calls):
        signal = float(call.output.double().square().sum())
        noise = call.output.numel() * (0.1**2 + 0.2**2) / 2
        assert found.raw_db[step] == pytest.approx(10 * math.log10(signal / noise), abs=1e-4)
        blank, told = call.output.double().chunk(2)
        both = blank + 3 * (told - blank)
        error = both.numel() * (0.1 + 3 * (0.2 - 0.1)) ** 2  # e_u + g (e_c - e_u)
        expected = 10 * math.log10(float(both.square().sum()) / error)
        assert found.guided_db[step] == pytest.approx(expected, abs=1e-4)
    total = sum(float(call.output.double().square().sum()) for call in calls.calls)
    noise = sum(call.output.numel() for call in calls.calls) * (0.1**2 + 0.2**2) / 2
    assert found.raw_overall_db == pytest.approx(10 * math.log10(total / noise), abs=1e-4)


def test_common_shifts_are_not_amplified_by_guidance() -> None:
    calls = _calls(steps=1)
    found = metric.sqnr_by_step(_Shifted(0.1, 0.1), calls)
    blank, told = calls.calls[0].output.double().chunk(2)
    signal = float((blank + 3 * (told - blank)).square().sum())
    expected = 10 * math.log10(signal / (blank.numel() * 0.01))
    assert found.guided_overall_db == pytest.approx(expected, abs=1e-4)


def test_calls_of_one_step_are_one_value() -> None:
    one = _calls(steps=1)
    twice = Trajectories(
        prompts=("a",) * 4, steps=1, guidance=3.0, calls=one.calls * 2, latents=one.latents
    )
    found = metric.sqnr_by_step(_Shifted(0.1, 0.2), twice)
    alone = metric.sqnr_by_step(_Shifted(0.1, 0.2), one)
    assert len(found.raw_db) == 1
    assert found.raw_db[0] == pytest.approx(alone.raw_db[0], abs=1e-9)


def test_energies_have_limits() -> None:
    assert metric.decibel(1.0, 0.0) == math.inf
    assert metric.decibel(0.0, 0.0) == math.inf
    assert metric.decibel(0.0, 1.0) == -math.inf
    assert metric.decibel(100.0, 1.0) == pytest.approx(20.0)


def test_latents_against_a_reference() -> None:
    reference = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    found = metric.latent_error(torch.tensor([[6.0, 8.0], [0.0, 1.0]]), reference)
    assert found.cosine == pytest.approx((1.0, 0.0))
    assert found.relative == pytest.approx((1.0, 2.0))


def test_the_teacher_against_itself_is_without_error(tmp_path: Path) -> None:
    pipeline: Any = tiny.pipeline(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    prompts = ["a red circle", "a blue square", "a circle"]
    made = record(pipeline, prompts, steps=2, guidance=3.0, seed=5, batch_size=2)
    seen: list[int] = []
    found = metric.sqnr_by_step(
        denoiser(pipeline)[1], made, report=lambda event: seen.append(event.done)
    )
    assert found.raw_db == (math.inf, math.inf)
    assert found.guided_overall_db == math.inf
    assert seen == [0, 1, 2, 3, 4]
    ends = metric.final_latents(pipeline, prompts, steps=2, guidance=3.0, seed=5, batch_size=2)
    assert torch.equal(ends, made.latents)
    assert metric.latent_error(ends, made.latents).relative == (0.0, 0.0, 0.0)
