"""Execution modes: what is predicted is what is held, and the picture is the same in each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import vqdq
from tests.models import tiny
from vqdq.cli import flags
from vqdq.cli import modes as words
from vqdq.errors import UserError
from vqdq.jobs import generate
from vqdq.jobs.requests import GenerateRequest
from vqdq.jobs.warm import WarmPipelines
from vqdq.layers import residency
from vqdq.layers.residency import DecodedLayer, chosen
from vqdq.models import modes
from vqdq.models.compressor import compress_folder, plan
from vqdq.models.modes import ModeEstimate, mode_estimates
from vqdq.recipe import Recipe


def recipe(**rule: object) -> Recipe:
    return Recipe.from_json({"name": "r", "rules": [{"pattern": "*", "method": "int8", **rule}]})


PLAIN, ROUNDED = recipe(), recipe(activation={"method": "dynamic", "params": {"small": True}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("modes")
    tiny.folder(place / "tiny")
    compress_folder(place / "tiny", PLAIN, place / "plain")
    compress_folder(place / "tiny", ROUNDED, place / "rounded")
    return place


def stored_bytes(unet: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in unet.state_dict().values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_mode_draws_the_same_and_holds_what_was_predicted(
    folder: Path, dtype: torch.dtype
) -> None:
    ready = plan(folder / "tiny", PLAIN)
    pipe = vqdq.load(folder / "plain").to(dtype)
    assert [each.mode for each in mode_estimates(ready)] == list(modes.MODES)
    pictures: list[torch.Tensor] = []
    found: dict[str, ModeEstimate] = {}
    for each in mode_estimates(ready, dtype=dtype)[:3]:
        modes.set_mode_(pipe, each.mode, each.cache_bytes)
        pictures.append(tiny.draw(pipe))
        assert modes.held_bytes(pipe) == each.held_bytes
        assert stored_bytes(pipe.unet) == each.stored_bytes
        found[each.mode] = each
    assert all(torch.equal(picture, pictures[0]) for picture in pictures)
    count = sum(item.layer.shape.count for item in ready.quantized)
    assert found["resident"].held_bytes == count * dtype.itemsize
    assert found["streaming"].held_bytes == 0
    hybrid = found["hybrid"]
    largest = max(item.layer.shape.count for item in ready.quantized)
    assert hybrid.cache_bytes == count * dtype.itemsize // 2
    assert 0.95 * hybrid.cache_bytes < hybrid.held_bytes <= hybrid.cache_bytes
    matrix_and_cast = 4 + (0 if dtype == torch.float32 else dtype.itemsize)
    assert found["streaming"].transient_bytes == largest * matrix_and_cast
    assert found["streaming"].decode_seconds > hybrid.decode_seconds > 0
    assert found["resident"].decode_seconds == 0


def test_layers_in_integers_hold_what_was_predicted_and_stream_too(folder: Path) -> None:
    ready = plan(folder / "tiny", ROUNDED)
    pipe = vqdq.load(folder / "rounded", mode="integer")
    pictures = [tiny.draw(pipe)]
    resident, streaming, hybrid, whole = mode_estimates(ready, dtype=torch.float32)
    assert modes.held_bytes(pipe) == whole.held_bytes == resident.held_bytes
    for each in (streaming, hybrid):
        modes.set_mode_(pipe, each.mode, each.cache_bytes)
        pictures.append(tiny.draw(pipe))
        assert modes.held_bytes(pipe) == each.held_bytes
    assert all(torch.equal(picture, pictures[0]) for picture in pictures)
    assert whole.refusal == ""
    if not torch.cuda.is_available():
        assert "known only" in mode_estimates(ready, device="cuda")[3].refusal


def test_a_cast_spends_the_budget_anew(folder: Path) -> None:
    ready = plan(folder / "tiny", PLAIN)
    budget = mode_estimates(ready, dtype=torch.bfloat16)[2].cache_bytes
    pipe = vqdq.load(folder / "plain", mode="hybrid", cache_bytes=budget)
    for dtype in (torch.float32, torch.bfloat16):
        tiny.draw(pipe.to(dtype))
        expected = mode_estimates(ready, dtype=dtype, cache_bytes=budget)[2]
        assert modes.held_bytes(pipe) == expected.held_bytes


def test_the_choice_is_by_seconds_a_byte_then_by_size_and_takes_what_fits() -> None:
    def layer(name: str, size: int, seconds: float, reads_text: bool = False) -> DecodedLayer:
        return DecodedLayer(name=name, num_bytes=size, seconds=seconds, reads_text=reads_text)

    layers = [
        layer("slow", 40, 8.0), layer("wide", 60, 3.0), layer("same", 50, 2.5),
        layer("small", 10, 0.5), layer("text", 10, 99.0, reads_text=True),
    ]  # fmt: skip
    wanted = {
        0: set(), 39: {"small", "text"}, 40: {"slow"}, 99: {"slow", "same"},
        100: {"slow", "wide"}, 110: {"slow", "wide", "small"}, 170: {each.name for each in layers},
    }  # fmt: skip
    for budget, names in wanted.items():
        assert chosen(layers, budget) == names
        assert chosen(reversed(layers), budget) == names


def test_what_cannot_be_chosen_says_why_and_changes_nothing(folder: Path) -> None:
    pipe = vqdq.load(folder / "plain", mode="streaming")
    for mode, cache, said in (
        ("integer", None, "rounds no layer's input"),
        ("hybrid", None, "needs the bytes"),
        ("resident", 1, "keeps no cache"),
        ("fast", None, "there is no mode"),
    ):
        with pytest.raises(UserError, match=said):
            modes.set_mode_(pipe, mode, cache)  # type: ignore[arg-type]
        assert modes.setting_of(pipe).mode == "streaming"
    assert mode_estimates(plan(folder / "tiny", PLAIN))[3].refusal
    with pytest.raises(UserError, match="no packed layers"):
        vqdq.load(folder / "tiny", mode="streaming")
    assert residency.setting_of(torch.nn.Linear(1, 1)).mode == "resident"


def test_the_command_line_knows_the_same_modes_and_the_record_says_which(
    folder: Path, tmp_path: Path
) -> None:
    assert flags.MODES == modes.MODES
    asked = GenerateRequest(
        model=str(folder / "plain"),
        prompt="a red circle",
        steps=1,
        mode="hybrid",
        cache_bytes=99_999,
    )
    assert GenerateRequest.from_json(asked.to_json()) == asked
    cache = WarmPipelines()
    drawn = generate.execute(asked, tmp_path, cache=cache, name="one.png")
    assert (drawn["mode"], drawn["cache_bytes"]) == ("hybrid", 99_999)
    usual = replace(asked, mode="resident", cache_bytes=None)
    assert "mode" not in usual.to_json()
    again = generate.execute(usual, tmp_path, cache=cache, name="two.png")
    assert (again["mode"], again["load_seconds"]) == ("resident", 0)
    assert (tmp_path / "one.png").stat().st_size > 0
    with pytest.raises(UserError, match="needs the bytes"):
        replace(asked, cache_bytes=None)
    ready = plan(folder / "tiny", PLAIN)
    told = words.lines(words.estimates(ready, 50_000))
    assert "not possible: the recipe rounds no layer's input" in told[4]
    assert "kept decoded" in told[3]
