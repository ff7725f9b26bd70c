"""Planted faults are found, in both directions and in their half of the picture; nothing stays."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.models import tiny
from vqdq import activations, codecs
from vqdq.codecs.base import Packed
from vqdq.errors import Cancelled, UserError
from vqdq.layers.matrix import to_matrix
from vqdq.layers.surgery import quantize_
from vqdq.metrics.trajectory import decibel, energy
from vqdq.models.blame import blame, blamed, halved
from vqdq.models.blame_report import REGION, BlameReport
from vqdq.models.compressor import compress
from vqdq.models.memo import exchanged
from vqdq.models.region import region_weights
from vqdq.models.trajectory import Call, Trajectories, record, replay
from vqdq.progress import Event
from vqdq.recipe import Recipe
from vqdq.rules import Rule

PLANTED = "up_blocks.0.resnets.0.conv1"
INPUT = "mid_block.resnets.0.conv1"
SOME = ("mid_block.*", "up_blocks.0.resnets.*", "down_blocks.1.resnets.*")


def rule(pattern: str, bits: int, input_bits: int = 0) -> Rule:
    params = codecs.create("uniform", bits=bits).params
    if not input_bits:
        return Rule(pattern=pattern, method="uniform", params=params)
    kind = activations.get("dynamic")
    given = kind(kind.settings.from_json({"bits": input_bits}))
    return Rule(
        pattern=pattern,
        method="uniform",
        params=params,
        activation=given.name,
        activation_params=given.params,
    )


RECIPE = Recipe(
    name="planted", rules=(rule(PLANTED, 2), rule(INPUT, 6, 4), *(rule(p, 6) for p in SOME))
)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: Any = tiny.pipeline(tmp_path_factory.mktemp("blame"))
    made.set_progress_bar_config(disable=True)
    made.unet.eval()
    return made


@pytest.fixture(scope="module")
def variant(pipe: Any) -> Any:
    return compress(pipe, RECIPE)


@pytest.fixture(scope="module")
def calls(pipe: Any) -> Trajectories:
    return record(pipe, ["a red circle", "a square"], steps=2, guidance=3.0, batch_size=1)


@pytest.fixture(scope="module")
def found(pipe: Any, variant: Any, calls: Trajectories) -> BlameReport:
    return blame(pipe, variant, calls, calls=3)


def _state(pipeline: Any) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in pipeline.unet.state_dict().items()}


def _unchanged(pipeline: Any, before: dict[str, torch.Tensor]) -> bool:
    now = pipeline.unet.state_dict()
    return now.keys() == before.keys() and all(torch.equal(before[k], now[k]) for k in now)


def test_the_planted_layer_is_first_in_both_directions(found: BlameReport) -> None:
    for by in ("gain", "damage"):
        first = found.names[found.ranked(by)[0]]
        assert first in (PLANTED, INPUT)
        assert {found.names[place] for place in found.ranked(by)[:2]} == {PLANTED, INPUT}
    assert found.complete
    assert bool(found.measured.all())
    place = found.names.index(PLANTED)
    assert found.methods[place] == "uniform"
    assert found.relative_error[place] == max(found.relative_error)
    assert np.isnan(found.estimate).all()
    assert found.activations[found.names.index(INPUT)] == "dynamic"


def test_numbers_are_those_of_an_exchange_by_hand(
    pipe: Any, variant: Any, calls: Trajectories, found: BlameReport
) -> None:
    places = set(zip(found.steps, found.prompts, strict=True))
    chosen = [call for call in calls.calls if (call.step, call.prompts[0]) in places]
    assert len(chosen) == 3

    def sqnr(module: nn.Module) -> float:
        with torch.no_grad():
            parts = [energy(replay(module, call), call, calls.guidance) for call in chosen]
        return decibel(sum(p.guided_signal for p in parts), sum(p.guided_error for p in parts))

    assert found.sqnr_db() == pytest.approx(sqnr(variant.unet), abs=1e-6)
    for name in (PLANTED, INPUT, found.names[0], found.names[-1]):
        place = found.names.index(name)
        dense, packed = pipe.unet.get_submodule(name), variant.unet.get_submodule(name)
        with exchanged(variant.unet, {name: halved(dense, name)}):
            gain = sqnr(variant.unet) - found.sqnr_db()
        assert found.gain_db()[place] == pytest.approx(gain, abs=1e-6)
        with exchanged(pipe.unet, {name: packed}):
            assert found.damage_db()[place] == pytest.approx(sqnr(pipe.unet), abs=1e-6)
    given: Any = variant.unet.get_submodule(INPUT)
    given.input.enabled = False
    gain = sqnr(variant.unet) - found.sqnr_db()
    given.input.enabled = True
    place = found.names.index(INPUT)
    assert found.input_gain_db()[place] == pytest.approx(gain, abs=1e-6)
    assert np.isfinite(found.input_gain_db()).sum() == 1
    removed = 1 - 10 ** (-found.gain_db()[place] / 10)
    assert found.removed()[place] == pytest.approx(removed)


def test_models_come_back_and_a_cancelled_work_goes_on(
    pipe: Any, variant: Any, calls: Trajectories, found: BlameReport, tmp_path: Path
) -> None:
    before = _state(pipe), _state(variant)
    own = {name: id(module) for name, module in variant.unet.named_modules()}
    keep = tmp_path / "blame.npz"
    stop = len(found.names) + 7

    def report(event: Event, /) -> None:
        if event.stage == "blame" and event.done == stop:
            raise Cancelled

    with pytest.raises(Cancelled):
        blame(pipe, variant, calls, calls=3, keep=keep, report=report)
    assert _unchanged(pipe, before[0])
    assert _unchanged(variant, before[1])
    assert {name: id(module) for name, module in variant.unet.named_modules()} == own
    assert variant.unet.get_submodule(INPUT).input.enabled
    partly = BlameReport.load(keep)
    assert not partly.complete
    assert np.isfinite(partly.repaired).sum() == len(found.names)
    assert partly.names[partly.ranked()[0]] in (PLANTED, INPUT)
    events: list[Event] = []
    again = blame(pipe, variant, calls, calls=3, keep=keep, report=events.append)
    assert {event.total for event in events} == {3 * (2 * len(found.names) + 1)}
    for key in ("error", "repaired", "alone", "unrounded"):
        assert np.array_equal(getattr(again, key), getattr(found, key), equal_nan=True), key
    kept = BlameReport.load(keep)
    assert (kept.names, kept.steps, kept.context) == (found.names, found.steps, {})
    assert np.array_equal(kept.alone, found.alone)
    # Another variant does not go on with these numbers.
    other = compress(pipe, Recipe(name="other", rules=tuple(rule(p, 5) for p in SOME)))
    anew = blame(pipe, other, calls, calls=1, keep=keep)
    assert anew.sqnr_db() != pytest.approx(found.sqnr_db(), abs=0.1)


def test_the_estimate_picks_whom_to_measure(
    pipe: Any, variant: Any, calls: Trajectories, found: BlameReport
) -> None:
    few = blame(pipe, variant, calls, calls=2, worst=3)
    assert np.isfinite(few.estimate).all()
    assert few.measured.sum() == 3
    assert few.complete
    assert {few.names[place] for place in few.ranked()[:2]} == {PLANTED, INPUT}
    alone = 10 ** (-found.damage_db() / 10)
    for name in (PLANTED, INPUT):
        place = found.names.index(name)
        assert few.estimate[place] == pytest.approx(alone[place], rel=0.8)  # to first order


def test_the_standard_error_is_the_jackknife(found: BlameReport) -> None:
    place = found.names.index(PLANTED)
    without = [
        10 * math.log10(sum(np.delete(found.error[0], i)) / sum(np.delete(left, i)))
        for left in [found.repaired[0, :, place]]
        for i in range(3)
    ]
    mean = sum(without) / 3
    expected = math.sqrt(2 / 3 * sum((value - mean) ** 2 for value in without))
    assert found.gain_error_db()[place] == pytest.approx(expected)
    steps, gains = found.by_step()
    assert gains.shape == (len(steps), len(found.names))
    row = [i for i, step in enumerate(found.steps) if step == steps[0]]
    gain = found.error[0, row].sum() / found.repaired[0, row, place].sum()
    assert gains[0, place] == pytest.approx(10 * math.log10(gain))
    assert len(found.sqnr_by_step()) == len(steps)


class _Halves(nn.Module):
    """The left half of a picture goes through one layer, the right half through another."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(8, 8, 1, bias=False), nn.Conv2d(8, 8, 1, bias=False)

    def forward(self, x: torch.Tensor, time: float) -> tuple[torch.Tensor]:
        del time
        left, right = x.chunk(2, dim=3)
        return (torch.cat([self.left(left), self.right(right)], dim=3),)


def _packed(model: nn.Module, name: str, bits: int) -> Packed:
    weight = to_matrix(model.get_submodule(name).get_parameter("weight").detach())
    return codecs.create("uniform", bits=bits).encode(weight)


def test_a_region_finds_the_damage_that_is_in_it() -> None:
    torch.manual_seed(0)
    reference = _Halves()
    made: list[Call] = []
    for step in range(3):
        x = torch.randn(1, 8, 4, 8)
        with torch.no_grad():
            y = reference(x, 0.0)[0]
        made.append(Call(step=step, timestep=0.0, prompts=(0,), args=(x, 0.0), kwargs={}, output=y))
    data = Trajectories(
        prompts=("",), steps=3, guidance=1.0, calls=tuple(made), latents=torch.zeros(1)
    )
    variant = _Halves()
    variant.load_state_dict(reference.state_dict())
    quantize_(variant, {"left": _packed(variant, "left", 5), "right": _packed(variant, "right", 3)})
    mask = torch.zeros(32, 64, dtype=torch.bool)
    mask[:, :32] = True
    found = blamed(reference, variant, data, calls=3, mask=mask)
    assert (found.areas, found.names) == (2, ("left", "right"))
    assert found.names[found.ranked("gain")[0]] == "right"
    for by in ("gain", "damage"):
        assert found.names[found.ranked(by, REGION)[0]] == "left"  # type: ignore[arg-type]
    # Nothing that the right layer does is in the left half.
    assert found.gain_db(REGION)[1] == 0.0
    assert found.damage_db(REGION)[1] == math.inf
    assert np.allclose(found.by_step(REGION)[1][:, 1], 0.0)
    lost = reference.left.weight - variant.left.weight  # type: ignore[union-attr]
    # So does the estimate of whom to measure.
    few = blamed(reference, variant, data, calls=3, worst=1, mask=mask)
    assert few.measured.tolist() == [True, False]
    assert few.estimate[1] == 0.0
    assert few.estimate[0] == pytest.approx(10 ** (-few.damage_db(REGION)[0] / 10), rel=0.8)
    everywhere = blamed(reference, variant, data, calls=3, worst=1)
    assert everywhere.measured.tolist() == [False, True]
    for number, call in enumerate(made):
        half = torch.nn.functional.conv2d(call.args[0][..., :4], lost.detach())
        assert found.error[REGION, number] == pytest.approx(float(half.square().sum()), rel=1e-4)
        assert found.sqnr_by_step(REGION).shape == (3,)


def test_a_mask_is_averaged_over_the_places_of_the_prediction() -> None:
    mask = torch.zeros(8, 16)
    mask[:4, :6] = 1
    expected = torch.tensor([[1.0, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert torch.equal(region_weights(mask, (2, 4, 2, 4)), expected[None, None])
    assert torch.equal(region_weights(mask, (2, 8, 64)), expected.reshape(1, 8, 1))
    for wrong, shape, words in (
        (mask[None], (1, 1, 2, 4), "no picture"),
        (mask - 1, (1, 1, 2, 4), "outside 0 to 1"),
        (mask * 0, (1, 1, 2, 4), "nothing is marked"),
        (mask, (2, 7, 64), "no places"),
        (mask, (2, 8), "no places"),
    ):
        with pytest.raises(UserError, match=words):
            region_weights(wrong, shape)


def test_models_that_do_not_belong_together(
    pipe: Any, variant: Any, calls: Trajectories, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no packed layer"):
        blame(pipe, pipe, calls)
    stranger: Any = tiny.pipeline(tmp_path, seed=1)
    with pytest.raises(UserError, match="nothing in common"):
        blame(stranger, variant, calls)
    reference = _Halves()
    with pytest.raises(UserError, match="no such layer of this shape"):
        blamed(
            reference,
            variant.unet,
            Trajectories(
                prompts=("",),
                steps=1,
                guidance=1.0,
                latents=torch.zeros(1),
                calls=(
                    Call(
                        step=0,
                        timestep=0.0,
                        prompts=(0,),
                        args=(torch.randn(1, 8, 2, 2), 0.0),
                        kwargs={},
                        output=torch.randn(1, 8, 2, 2),
                    ),
                ),
            ),
        )
    path = tmp_path / "no.npz"
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="damaged"):
        BlameReport.load(path)
