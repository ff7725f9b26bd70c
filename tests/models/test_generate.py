"""The same seed starts from the same noise; what is out of range is refused before any work."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.models import tiny
from vqdq.errors import Cancelled, UserError
from vqdq.models import generate as module
from vqdq.models.generate import GenerateResult, check_request, generate
from vqdq.progress import CancelToken, Event, cancellable, silent


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> object:
    made = tiny.pipeline(tmp_path_factory.mktemp("generate"))
    made.set_progress_bar_config(disable=True)
    return made


def draw(pipe: object, **changed: object) -> GenerateResult:
    arguments = {"prompt": "a red circle", "seed": 5, "steps": 2, "guidance": 3.0, **changed}
    return generate(pipe, **arguments)  # type: ignore[arg-type]


def test_equal_seeds_give_equal_pictures(pipe: object) -> None:
    first, again, other = draw(pipe), draw(pipe), draw(pipe, seed=6)
    assert first.image.size == (16, 16)
    assert first.image.tobytes() == again.image.tobytes()
    assert torch.equal(first.latents, again.latents)
    assert first.latents.shape == (1, 4, 8, 8)
    assert first.initial_latent_sha256 == again.initial_latent_sha256
    assert first.initial_latent_sha256 != other.initial_latent_sha256
    assert first.notice == ""


def test_noise_depends_on_the_seed_alone(pipe: object) -> None:
    one = draw(pipe, prompt="a blue square above", guidance=1.0, steps=3)
    assert one.initial_latent_sha256 == draw(pipe).initial_latent_sha256


@pytest.mark.parametrize("prompt", ["", "🦊 a red circle 圆", "x" * 2000])
def test_odd_prompts_are_legal(pipe: object, prompt: str) -> None:
    result = draw(pipe, prompt=prompt, steps=1)
    assert ("16 tokens" in result.notice) == (len(prompt) == 2000)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -1),
        ("seed", 2**63),
        ("seed", 2**64),
        ("seed", True),
        ("seed", 1.5),
        ("steps", 0),
        ("steps", 1001),
        ("guidance", -0.1),
        ("guidance", float("nan")),
        ("guidance", 101),
        ("prompt", "x" * 10_000),
        ("prompt", "\ud800"),
    ],
)
def test_out_of_range_is_refused(pipe: object, name: str, value: object) -> None:
    with pytest.raises(UserError) as caught:
        draw(pipe, **{name: value})
    assert caught.value.where == name
    assert caught.value.remedy


def test_the_largest_seed_is_legal(pipe: object) -> None:
    check_request(prompt="", seed=2**63 - 1, steps=1000, guidance=0.0)
    draw(pipe, seed=2**63 - 1, steps=1)


def test_progress_and_cancel_within_a_step(pipe: object) -> None:
    events: list[Event] = []
    draw(pipe, steps=3, report=events.append)
    assert [(e.stage, e.done, e.total) for e in events] == [("generate", k, 3) for k in range(4)]
    token = CancelToken()
    seen: list[int] = []

    def stop_at_one(event: Event) -> None:
        seen.append(event.done)
        if event.done == 1:
            token.cancel()

    with pytest.raises(Cancelled):
        draw(pipe, steps=9, report=cancellable(stop_at_one, token))
    assert seen == [0, 1]
    assert not pipe.unet._forward_pre_hooks  # type: ignore[attr-defined]


def test_what_the_first_call_takes_longer_is_told_apart(
    pipe: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = iter((0.0, 1.0, 5.0, 6.0, 8.0, 9.0))  # start, four calls, end
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(moments)))
    found = draw(pipe, steps=4)
    assert (found.seconds, found.once_seconds) == (
        9.0,
        2.5,
    )  # 4 s, else 1 and 2


def test_a_capture_is_open_while_it_draws(pipe: object) -> None:
    log: list[str] = []

    @contextlib.contextmanager
    def recorder() -> Generator[None, None, None]:
        log.append("open")
        yield
        log.append("closed")

    draw(pipe, steps=1, capture=recorder(), report=lambda event: log.append(str(event.done)))
    assert log == ["open", "0", "closed", "1"]
    assert silent(Event(stage="")) is None


def test_a_cut_prompt_is_said(pipe: object, tmp_path: Path) -> None:
    del tmp_path
    notice = draw(pipe, prompt="a red circle above " * 9, steps=1).notice
    assert "holds 16 tokens" in notice
    assert "has 38" in notice
