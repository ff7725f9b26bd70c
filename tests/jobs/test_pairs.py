"""The pictures of a blind test: drawn once each, and nothing beside them tells a model."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

from tests.jobs.test_protocol import FOUR, FP16, THREE, TWO, protocol
from vqdq.errors import Cancelled, UserError
from vqdq.jobs import pairs
from vqdq.jobs.ballots import ballots, climb
from vqdq.jobs.pairs import Painted
from vqdq.progress import Event

NAMES = [entrant.name for entrant in (FP16, THREE, FOUR, TWO)]


def paint(entrant, picture, report):
    """Pixels that say which picture it is, and a report as talkative as the real one."""
    report(Event(stage="load", message=entrant.name))
    report(Event(stage="draw", done=1, total=2, message=entrant.name, preview=entrant.name))
    shown = f"{entrant.digest} {picture.prompt} {picture.seed}"
    noise = np.random.default_rng(list(shown.encode()))
    pixels = noise.integers(0, 256, (16, 24, 3), dtype=np.uint8)
    return Painted(image=Image.fromarray(pixels), start=f"noise of {picture.seed}")


@pytest.mark.parametrize(
    "made",
    [
        protocol(),
        protocol(models=(FP16, THREE, FOUR), pairs=7, obvious=0, obvious_model=None),
        protocol(models=(FP16, TWO), pairs=3, obvious=5),
        protocol(mode="abx", pairs=9),
    ],
    ids=["two", "three", "obvious takes part", "abx"],
)
def test_every_picture_that_anybody_is_shown_is_drawn(made, tmp_path):
    wanted = {pairs.drawn_path(made, tmp_path, picture) for picture in pairs.needed(made)}
    assert len(wanted) == len(pairs.needed(made))  # none twice
    shown = {
        pairs.drawn_path(made, tmp_path, picture)
        for person in ("Ana", "Ben", "Cem")
        for ballot in ballots(made, person)
        for _, picture in ballot.pictures
    }
    assert shown == wanted


def test_a_staircase_needs_every_level_of_every_cell():
    levels = (FP16, TWO, THREE)
    made = protocol(mode="staircase", models=levels, pairs=1, obvious=0, obvious_model=None)
    assert len(pairs.needed(made)) == 3 * 40
    _, ballot = climb(made, "Ana", {})
    assert {picture for _, picture in ballot.pictures} <= set(pairs.needed(made))


def test_models_are_outermost():
    order = [picture.entrant for picture in pairs.needed(protocol(pairs=4))]
    assert order == [0] * 4 + [1] * 4 + [2] * 2


def test_a_stopped_job_goes_on_and_says_nothing(tmp_path):
    made = protocol(pairs=4, obvious=0, obvious_model=None)
    events, painted = [], []

    def counting(entrant, picture, report):
        painted.append(picture)
        return paint(entrant, picture, report)

    def until(event):
        events.append(event)
        if event.done == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        pairs.draw_all(made, tmp_path, counting, report=until)
    found = pairs.draw_all(made, tmp_path, counting, report=events.append)
    assert painted == list(pairs.needed(made))  # none was drawn twice
    assert (found["pictures"], found["width"], found["height"]) == (8, 24, 16)
    assert found["starts"] == {"1": "noise of 1"}
    assert {(event.stage, event.total, event.message, event.preview) for event in events} == {
        ("pairs", 8, "", None)
    }
    assert events[-1].done == 8
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    drawn = [path for path in files if path.suffix == ".png"]
    assert {(os.stat(path).st_size, os.stat(path).st_mtime) for path in drawn} == {
        (os.stat(drawn[0]).st_size, 315532800.0)
    }
    everything = json.dumps(found) + "".join(map(str, files))
    content = b"".join(path.read_bytes() for path in files)
    for name in NAMES:
        assert name not in everything
        assert name.encode() not in content
    assert made.order_seed not in everything + content.decode("latin-1")


def test_models_that_differ_by_more_than_compression_are_refused(tmp_path):
    made = protocol(pairs=2, obvious=0, obvious_model=None)

    def other(entrant, picture, report):
        first = paint(entrant, picture, report)
        return first if entrant == FP16 else Painted(image=first.image, start="else")

    with pytest.raises(UserError, match="other noise") as caught:
        pairs.draw_all(made, tmp_path, other)
    assert caught.value.where == THREE.name


def test_sampling_is_part_of_the_protocol():
    made = protocol(drawing=(("steps", "12"), ("guidance", "2.5")))
    assert pairs.sampling_of(made) == (12, 2.5)
    with pytest.raises(UserError, match="steps and guidance"):
        pairs.sampling_of(protocol())
