"""Where a pipeline lies: asked of a card that is not there, moved one at a time, and moved back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models import tiny
from vqdq.errors import UserError
from vqdq.jobs import generate, placing
from vqdq.jobs.requests import GenerateRequest
from vqdq.jobs.warm import WarmPipelines
from vqdq.layers import card_memory
from vqdq.layers.card_memory import CardState
from vqdq.layers.quantized import QuantizedLayer
from vqdq.models.compressor import compress_folder
from vqdq.recipe import Recipe

RECIPE = Recipe.from_json({"name": "r", "rules": [{"pattern": "*", "method": "int8"}]})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("placing")
    tiny.folder(folder / "tiny")
    compress_folder(folder / "tiny", RECIPE, folder / "small")
    return folder


def test_without_a_card_it_is_said_and_nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no graphics card here") as caught:
        WarmPipelines().get("no such model", device="cuda")
    assert "the processor draws" in caught.value.remedy
    placing.require_device("cpu")


def test_a_card_computes_in_16_bits(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "require_device", lambda _: None)
    monkeypatch.setattr(placing, "place_", lambda *_: None)
    cache = WarmPipelines()
    kept = {device: cache.get(str(place / "small"), device=device) for device in ("cpu", "cuda")}
    plain, half = (kept[device].pipeline for device in ("cpu", "cuda"))
    assert cache.get(str(place / "small"), device="cuda").pipeline is half
    assert cache.get(str(place / "small")).pipeline is plain
    assert {p.dtype for p in plain.unet.parameters()} == {torch.float32}
    assert {p.dtype for p in half.unet.parameters()} == {torch.float16}
    asked: Any = {"model": str(place / "small"), "prompt": "a", "seed": 0, "steps": 1}
    request = GenerateRequest(**asked, device="cuda")
    picture = generate.execute(request, place, cache=cache)
    assert picture["setting"]["dtype"] == "float16"
    assert kept["cuda"].tensor_bytes < kept["cpu"].tensor_bytes
    layer = next(m for m in half.unet.modules() if isinstance(m, QuantizedLayer))
    assert layer.held_bytes == 2 * layer.dense(torch.float16).numel()  # kept as it was drawn with
    for supported, wanted in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, s=supported, **__: s)
        assert placing.computing_dtype("cuda", "transformer") == wanted
        assert placing.computing_dtype("cuda", "unet") == torch.float16
        assert placing.computing_dtype("cpu", "transformer") == torch.float32


def test_one_model_at_a_time_is_on_the_card(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[tuple[str, str]] = []
    monkeypatch.setattr(placing, "require_device", lambda _: None)
    monkeypatch.setattr(placing, "place_", lambda _, device, label: moves.append((label, device)))
    cache = WarmPipelines()
    cache.get(str(place / "tiny"), device="cuda")
    small = cache.get(str(place / "small"), device="cuda").label
    assert moves == [("FP16", "cuda"), ("FP16", "cpu"), (small, "cuda")]
    cache.get(str(place / "small"))
    assert moves[3:] == [(small, "cpu")]
    cache.get(str(place / "tiny"), device=None)  # a sweep places its models itself
    assert len(moves) == 4


def test_a_model_that_the_card_does_not_hold_is_back_on_the_processor(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe: Any = WarmPipelines().get(str(place / "small")).pipeline
    moves: list[str] = []

    def to(device: str) -> None:
        moves.append(device)
        if device == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 KiB.")

    state = CardState(allocated_bytes=5000, available_bytes=30_000)
    monkeypatch.setattr(pipe, "to", to)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(card_memory, "card_state", lambda _: state)
    monkeypatch.setattr(card_memory, "reset_card_peak", lambda _: None)
    placing.place_(pipe, "cpu", "small")
    assert moves == []  # it lies there
    with pytest.raises(UserError, match=r"memory is full: 20\.00 KiB more were needed") as caught:
        placing.place_(pipe, "cuda", "small")
    assert caught.value.where == "small"
    assert "a card with" in caught.value.remedy
    assert moves == ["cuda", "cpu"]
