"""A handful of kills of each kind; `make chaos` goes on for as long as one likes."""

from __future__ import annotations

import random

import pytest

from tests.chaos import kills, work


@pytest.mark.parametrize("kind", sorted(work.RESUMABLE))
def test_killed_work_goes_on_and_gives_the_same_files(kind, model, tmp_path):
    victim = kills.Victim(kind, model, tmp_path)
    victim.attack(random.Random(f"{kind} 1"), times=2)
    assert victim.kills >= 1


@pytest.mark.usefixtures("model")
def test_no_vote_is_lost(tmp_path):
    assert kills.attack_votes(random.Random(2), tmp_path / "votes", rounds=3) == 3


@pytest.mark.usefixtures("model")
def test_no_run_is_lost(tmp_path):
    assert kills.attack_history(random.Random(3), tmp_path / "space", rounds=4) == 4
