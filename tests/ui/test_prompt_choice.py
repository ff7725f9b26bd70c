"""The chooser of prompts: what its values mean, and what it says when they mean nothing."""

from __future__ import annotations

import pytest

from tests.models.test_prompt_sets import PARTI
from vqdq.errors import UserError
from vqdq.models import prompt_sets
from vqdq.ui import prompt_choice


def values(
    where="typed", *, typed="", known="demo examples", file=None, hub="", n=3, by="", seed=0
):
    return [where, typed, known, file, hub, n, by, seed]


def test_written_prompts_are_lines_without_repetitions() -> None:
    asked = values(typed="  a red  circle\n\na blue ring\na red circle\n")
    assert prompt_choice.read(asked) == ("a red circle", "a blue ring")
    with pytest.raises(UserError, match="there is no prompt"):
        prompt_choice.read(values(typed=" \n "))


def test_a_set_is_sampled_as_prompt_sets_samples_it() -> None:
    found = prompt_sets.built_in_set("demo examples")
    asked = values("set", n=4, by="challenge", seed=5)
    expected = prompt_sets.sample(found, 4, seed=5, by="challenge")
    assert prompt_choice.read(asked) == tuple(prompt.text for prompt in expected)
    assert {prompt.challenge for prompt in expected} == {"one object", "two objects"}
    with pytest.raises(UserError, match="9 prompts were asked for, and there are 8"):
        prompt_choice.read(values("set", n=9))
    with pytest.raises(UserError, match="not a whole number"):
        prompt_choice.read(values("set", n=2.5))


def test_a_file_as_published_is_shown_with_its_labels_and_never_with_its_place(tmp_path) -> None:
    path = tmp_path / "Parti.tsv"
    path.write_text(PARTI)
    found = prompt_choice.chosen(values("file", file=str(path), by="category"))
    assert (found.source, found.total, len(found.prompts)) == ("Parti.tsv", 4, 3)
    page = prompt_choice.listed(found)
    assert "3 of 4 prompts · Parti.tsv" in page
    assert str(tmp_path) not in page
    path.write_text(PARTI.replace("\tIllustrations", ""))
    changed = tmp_path / "Bad.tsv"
    path.rename(changed)
    with pytest.raises(UserError, match="columns") as fault:
        prompt_choice.read(values("file", file=str(changed)))
    assert fault.value.where == "Bad.tsv, line 3"
    with pytest.raises(UserError, match="no file is chosen"):
        prompt_choice.read(values("file"))
    with pytest.raises(UserError, match="is gone"):
        prompt_choice.read(values("file", file=str(path)))


def test_markup_in_a_prompt_stays_text(tmp_path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("<img src=x onerror=alert(1)>\n")
    page = prompt_choice.listed(prompt_choice.chosen(values("file", file=str(path), n=1)))
    assert "&lt;img" in page
    assert "<img" not in page


def test_the_hub_is_asked_only_for_a_file_of_a_dataset() -> None:
    with pytest.raises(UserError, match="no dataset is named"):
        prompt_choice.read(values("hub"))
    with pytest.raises(UserError, match="no file of a hub dataset"):
        prompt_choice.read(values("hub", hub="owner/dataset"))
