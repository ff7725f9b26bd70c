"""Effects against closed forms on linear models, and against injected noise on a real denoiser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.models import tiny
from vqdq.errors import UserError
from vqdq.models.denoisers import denoiser
from vqdq.models.sensitivity import Sensitivity, injected, measure, spread_calls
from vqdq.models.trajectory import Call, Trajectories, record
from vqdq.progress import Event


class _Linear(nn.Module):
    """y = gain · x Wᵀ: every effect is known."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 4, bias=False)
        self.idle = nn.Linear(3, 3)
        self.gain = gain
        with torch.no_grad():
            drawn = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
            self.inner.weight.copy_(drawn * torch.tensor([[1.0], [2.0], [0.5], [4.0]]))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.gain * self.inner(x),)


def _trajectories(model: nn.Module, calls: int, *, guided: bool) -> Trajectories:
    source = torch.Generator().manual_seed(1)
    made: list[Call] = []
    for step in range(calls):
        x = torch.randn(8, 6, generator=source)
        with torch.no_grad():
            y = model(x)[0]
        prompts = tuple(range(4 if guided else 8))
        made.append(Call(step=step, timestep=0.0, prompts=prompts, args=(x,), kwargs={}, output=y))
    return Trajectories(
        prompts=("",) * 8, steps=calls, guidance=2.0, calls=tuple(made), latents=torch.zeros(8, 1)
    )


def test_the_effect_of_a_linear_layer_is_its_closed_form() -> None:
    """E‖x Eᵀ‖² with independent errors of variance mean(W_r²) is ‖x‖² Σ_r mean(W_r²), exactly for
    each output alone; probes of several samples together add noise around it."""
    model = _Linear(gain=3.0)
    data = _trajectories(model, 2, guided=True)
    found = measure(model, data, ["inner", "idle"], calls=2, probes=400)
    variance = float(model.inner.weight.detach().square().mean(dim=1).sum())
    raw = signal = told = told_signal = 0.0
    for call in data.calls:
        x = call.args[0]
        raw += 9 * float(x.square().sum()) * variance
        signal += float(call.output.square().sum())
        blank, conditional = x.chunk(2)
        both = blank + 2 * (conditional - blank)  # the same E acts on both halves
        told += 9 * float(both.square().sum()) * variance
        first, second = call.output.chunk(2)
        told_signal += float((first + 2 * (second - first)).square().sum())
    assert found.effects["inner"].raw == pytest.approx(raw / signal, rel=0.05)
    assert found.effects["inner"].guided == pytest.approx(told / told_signal, rel=0.05)
    shares = model.inner.weight.detach().square().mean(dim=1)
    assert found.effects["inner"].rows == pytest.approx((shares / shares.sum()).tolist(), rel=0.15)
    assert found.effects["idle"].raw == 0.0
    assert found.effects["idle"].rows == ()
    assert found.effects["inner"].blend(0.25) == pytest.approx(
        0.75 * found.effects["inner"].raw + 0.25 * found.effects["inner"].guided
    )


def test_without_guidance_both_effects_are_one() -> None:
    model = _Linear()
    found = measure(model, _trajectories(model, 2, guided=False), ["inner"], calls=2, probes=4)
    assert found.effects["inner"].raw == found.effects["inner"].guided > 0


def test_the_model_comes_back_as_it_was() -> None:
    model = _Linear()
    data = _trajectories(model, 2, guided=False)
    model.idle.weight.requires_grad_(False)
    model.inner.weight.grad = torch.full((4, 6), 7.0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    stop = RuntimeError("stop")

    def report(event: Event, /) -> None:
        if event.done == 1:
            raise stop

    for call in (None, report):
        if call is None:
            measure(model, data, ["inner"], calls=2)
            injected(model, data, "inner")
        else:
            with pytest.raises(RuntimeError, match="stop"):
                measure(model, data, ["inner"], calls=2, report=call)
        assert torch.equal(model.inner.weight.grad, torch.full((4, 6), 7.0))
        assert model.inner.weight.requires_grad
        assert not model.idle.weight.requires_grad
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        assert not model.inner.weight._post_accumulate_grad_hooks  # type: ignore[attr-defined]


def test_calls_are_spread_over_steps_and_prompts() -> None:
    calls = tuple(
        Call(
            step=step,
            timestep=0.0,
            prompts=(batch,),
            args=(),
            kwargs={},
            output=torch.zeros(1),
        )
        for batch in range(4)
        for step in range(20)
    )
    data = Trajectories(
        prompts=("",) * 4, steps=20, guidance=1.0, calls=calls, latents=torch.zeros(4, 1)
    )
    few = spread_calls(data, 5)
    assert [(call.step, call.prompts[0]) for call in few] == [
        (2, 0), (6, 1), (10, 2), (14, 3), (18, 0),
    ]  # fmt: skip
    even = spread_calls(data, 20)
    assert [call.step for call in even] == list(range(20))
    assert [call.prompts[0] for call in even[:5]] == [0, 1, 2, 3, 0]
    everything = spread_calls(data, 80)
    assert len({(call.step, call.prompts) for call in everything}) == 80
    assert len(spread_calls(data, 1000)) == 80


def test_backward_probes_agree_with_injected_noise(tmp_path: Path) -> None:
    pipeline: Any = tiny.pipeline(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    data = record(pipeline, ["a red circle", "a square"], steps=2, guidance=3.0, batch_size=1)
    module = denoiser(pipeline)[1]
    layers = [
        "down_blocks.0.resnets.0.conv1",
        "mid_block.attentions.0.transformer_blocks.0.ff.net.2",
        "up_blocks.1.resnets.0.conv_shortcut",
    ]
    seen: list[int] = []
    found = measure(
        module, data, layers, calls=4, probes=10, report=lambda event: seen.append(event.done)
    )
    assert seen == [0, 1, 2, 3, 4]
    for layer in layers:
        draws = [
            injected(module, data, layer, relative_error=1e-3, calls=4, seed=s) for s in range(4)
        ]
        raw = sum(draw.raw for draw in draws) / len(draws)
        told = sum(draw.guided for draw in draws) / len(draws)
        assert found.effects[layer].raw == pytest.approx(raw, rel=0.2)
        assert found.effects[layer].guided == pytest.approx(told, rel=0.2)


def test_a_measurement_is_kept_as_json() -> None:
    model = _Linear()
    found = measure(model, _trajectories(model, 2, guided=False), ["inner", "idle"], calls=2)
    again = Sensitivity.from_json(json.loads(json.dumps(found.to_json())))
    assert again == found
    with pytest.raises(UserError, match="is not a measured sensitivity"):
        Sensitivity.from_json({"version": 1, "effects": {"a": [1]}})
    with pytest.raises(UserError, match="version 2"):
        Sensitivity.from_json({"version": 2})


def test_a_model_that_predicts_nothing_is_refused() -> None:
    model = _Linear(gain=0.0)
    with pytest.raises(UserError, match="zero or not finite"):
        measure(model, _trajectories(model, 1, guided=False), ["inner"], calls=1)
