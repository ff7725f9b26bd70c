"""A handful of kills of each kind; `make chaos` goes on for as long as one likes."""

from __future__ import annotations

import random

import pytest

from tests.chaos import kills, work


@pytest.mark.parametrize("kind", sorted(work.RESUMABLE))
def test_killed_work_goes_on_and_gives_the_same_files(kind, model, tmp_path):
    victim = kills.Victim(kind, model, tmp_path)
    assert victim.attack(random.Random(f"{kind} 1"), times=2) >= 1


def test_a_run_that_is_killed_after_its_model_has_its_name_ends_with_that_model(model, tmp_path):
    killed = kills.Publication(model, tmp_path)
    # before the name, with it, and in the resumed run; then while the end is written
    assert killed.kill_at(1, 2, 24) == 3
    assert killed.kill_at(killed.points - 3) == 1


@pytest.mark.usefixtures("model")
def test_no_vote_is_lost(tmp_path):
    assert kills.attack_votes(random.Random(2), tmp_path / "votes", rounds=3) == 3


@pytest.mark.usefixtures("model")
def test_no_run_is_lost(tmp_path):
    assert kills.attack_history(random.Random(3), tmp_path / "space", rounds=4) == 4
