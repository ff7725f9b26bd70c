"""Recorded calls can be made again bit for bit; prompts; and what an error does at each step."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.models import tiny
from vqdq.demo import scenes
from vqdq.demo.evaluate import evaluation_scenes
from vqdq.errors import Cancelled, UserError
from vqdq.models.effects import step_weights
from vqdq.models.kept_calls import record_kept
from vqdq.models.prompts import built_in, prompts_for, read_prompts
from vqdq.models.trajectory import draw, guided, record, replay
from vqdq.progress import Event

PROMPTS = ("a red circle", "a blue square", "a red square")


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = tiny.pipeline(tmp_path_factory.mktemp("trajectory"))
    made.set_progress_bar_config(disable=True)
    made.unet.eval()
    return made


def test_calls_are_made_again_bit_for_bit(pipe: Any) -> None:
    found = record(pipe, PROMPTS, steps=3, guidance=3.0, seed=5, batch_size=2)
    assert [call.prompts for call in found.calls] == [(0, 1)] * 3 + [(2,)] * 3
    assert [call.step for call in found.calls] == [0, 1, 2] * 2
    times = [call.timestep for call in found.calls[:3]]
    assert times == [float(time) for time in pipe.scheduler.timesteps]
    with torch.no_grad():
        for call in found.calls:
            assert call.guided
            assert torch.equal(replay(pipe.unet, call), call.output)
    assert not pipe.unet._forward_hooks


def test_latents_are_those_of_the_pipeline(pipe: Any) -> None:
    found = record(pipe, PROMPTS, steps=2, guidance=3.0, seed=5)
    alone = record(pipe, PROMPTS[2:], steps=2, guidance=3.0, seed=7, batch_size=1)
    torch.testing.assert_close(alone.latents[0], found.latents[2], rtol=1e-4, atol=1e-5)
    assert torch.equal(draw(pipe, PROMPTS, steps=2, guidance=3.0, seed=5), found.latents)
    other = record(pipe, PROMPTS[:1], steps=2, guidance=3.0, seed=6)
    assert not torch.allclose(other.latents[0], found.latents[0], atol=1e-2)


def test_equal_tensors_are_kept_once(pipe: Any) -> None:
    found = record(pipe, PROMPTS[:1], steps=3, guidance=3.0)
    texts = {id(call.kwargs["encoder_hidden_states"]) for call in found.calls}
    assert len(texts) == 1
    assert len({id(call.args[0]) for call in found.calls}) == 3


def test_kept_recording_goes_on_and_is_the_same(pipe: Any, tmp_path: Path) -> None:
    whole = record(pipe, PROMPTS, steps=2, guidance=3.0, seed=5, batch_size=2)

    def stop(event: Event, /) -> None:
        if event.done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        record_kept(
            tmp_path, pipe, PROMPTS, steps=2, guidance=3.0, seed=5, batch_size=2, report=stop
        )
    first = tmp_path / "000000.safetensors"
    written = first.stat().st_mtime_ns
    events: list[Event] = []
    for _ in range(2):  # the second time everything is there
        found = record_kept(
            tmp_path, pipe, PROMPTS, steps=2, guidance=3.0, seed=5, batch_size=2,
            report=events.append,
        )  # fmt: skip
        assert torch.equal(found.latents, whole.latents)
        assert found.prompts == whole.prompts
        for left, right in zip(found.calls, whole.calls, strict=True):
            assert (left.step, left.timestep, left.prompts) == (
                right.step, right.timestep, right.prompts,
            )  # fmt: skip
            assert torch.equal(left.output, right.output)
            assert torch.equal(left.args[0], right.args[0])
            assert list(left.kwargs) == list(right.kwargs)
            assert left.kwargs["return_dict"] is False
        assert len({id(call.kwargs["encoder_hidden_states"]) for call in found.calls}) == 2
        with torch.no_grad():
            assert torch.equal(replay(pipe.unet, found.calls[-1]), whole.calls[-1].output)
    assert first.stat().st_mtime_ns == written
    assert {event.total for event in events} == {3}
    other = record_kept(tmp_path, pipe, PROMPTS, steps=2, guidance=3.0, seed=6, batch_size=2)
    assert not torch.equal(other.latents, whole.latents)  # a file of other work is not taken


def test_guidance_mixes_the_halves(pipe: Any) -> None:
    call = record(pipe, PROMPTS[:2], steps=1, guidance=3.0).calls[0]
    blank, told = call.output[:2], call.output[2:]
    torch.testing.assert_close(guided(call.output, call, 3.0), 3 * told - 2 * blank)
    assert torch.equal(guided(call.output, call, 0.0), blank)
    single = record(pipe, PROMPTS[:2], steps=1, guidance=1.0).calls[0]
    assert not single.guided
    assert torch.equal(guided(single.output, single, 1.0), single.output)


def test_cancelled_recording_leaves_no_hook(pipe: Any) -> None:
    events: list[Event] = []

    def stop(event: Event, /) -> None:
        events.append(event)
        if event.done:
            raise Cancelled

    with pytest.raises(Cancelled):
        record(pipe, PROMPTS, steps=1, guidance=3.0, batch_size=1, report=stop)
    assert [(event.done, event.total) for event in events] == [(0, 3), (1, 3)]
    assert not pipe.unet._forward_hooks


class Constant(nn.Module):
    """A prediction that only its weights decide."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 16)

    def forward(self, sample: torch.Tensor, timestep: Any) -> SimpleNamespace:
        ones = torch.ones(sample.shape[0], 8)
        return SimpleNamespace(sample=self.layer(ones) * (1 + float(timestep)))


class Sampler:
    """x ← x + gain_t · prediction: an error at step t ends as gain_t times itself."""

    gains = (0.5, 2.0, 1.0)

    def __init__(self) -> None:
        self.unet = Constant()

    def __call__(self, *, generator: list[torch.Generator], **_: Any) -> Any:
        latents = torch.stack([torch.randn(16, generator=one) for one in generator])
        for step, gain in enumerate(self.gains):
            latents = latents + gain * self.unet(latents, step).sample
        return SimpleNamespace(images=latents)


def test_step_weights_are_the_gains_of_the_sampler() -> None:
    """w_t = ‖gain_t δ‖² / (‖δ‖² / ‖ε_t‖²) ∝ (gain_t (1 + t))², whatever the disturbance δ is."""
    torch.manual_seed(0)
    sampler: Any = Sampler()
    before = {key: tensor.clone() for key, tensor in sampler.unet.state_dict().items()}
    found = record(sampler, ("a", "b", "c"), steps=3, guidance=0.0, seed=3)
    events: list[Event] = []
    weights = step_weights(sampler, found, prompts=2, report=events.append)
    raw = [(gain * (1 + step)) ** 2 for step, gain in enumerate(Sampler.gains)]
    assert weights == pytest.approx([3 * value / sum(raw) for value in raw], rel=1e-3)
    assert [(event.stage, event.done) for event in events] == [("weigh", at) for at in range(4)]
    for key, tensor in sampler.unet.state_dict().items():
        assert torch.equal(tensor, before[key])
    assert "forward" not in vars(sampler.unet)


def test_cancelled_weighing_puts_everything_back(pipe: Any) -> None:
    before = {key: tensor.clone() for key, tensor in pipe.unet.state_dict().items()}
    found = record(pipe, PROMPTS[:2], steps=2, guidance=3.0)

    def stop(event: Event, /) -> None:
        if event.done:
            raise Cancelled

    with pytest.raises(Cancelled):
        step_weights(pipe, found, report=stop)
    for key, tensor in pipe.unet.state_dict().items():
        assert torch.equal(tensor, before[key])
    weights = step_weights(pipe, found)
    assert sum(weights) == pytest.approx(2)
    assert min(weights) > 0
    with torch.no_grad():
        assert torch.equal(replay(pipe.unet, found.calls[0]), found.calls[0].output)


def test_prompts_of_the_demo_are_never_those_of_the_evaluation() -> None:
    found = prompts_for("demo", 200, seed=3)
    assert found == prompts_for("demo", 200, seed=3)
    assert found != prompts_for("demo", 200, seed=4)
    assert not {scenes.caption(scene) for scene in evaluation_scenes(200)} & set(found)


def test_prompts_of_a_file_and_of_other_models(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("  one \n\ntwo\nthree\n", encoding="utf-8")
    assert read_prompts(path) == ("one", "two", "three")
    four = prompts_for("demo", 4, seed=0, prompt_file=str(path))
    assert set(four) == {"one", "two", "three"}
    assert four[3] == four[0]
    folder = tiny.folder(tmp_path / "tiny")
    own = prompts_for(folder, 50, seed=0)
    assert len(set(own)) == 50
    assert set(own) <= set(built_in())


@pytest.mark.parametrize(
    ("data", "words"), [(b"\n \n", "no prompt"), (b"\xff\xfe", "not UTF-8"), (None, "cannot be")]
)
def test_prompt_files_that_cannot_be_used(tmp_path: Path, data: bytes | None, words: str) -> None:
    path = tmp_path / "prompts.txt"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UserError, match=words):
        read_prompts(path)
