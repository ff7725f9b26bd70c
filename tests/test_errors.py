"""The fault a person can mend has a place, a fact and a next step."""

from __future__ import annotations

import pickle

import pytest

from vqdq.errors import UserError
from vqdq.places import inside
from vqdq.spreadsheet import cell


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({}, "it broke."),
        ({"where": "conv_in"}, "conv_in: it broke."),
        ({"remedy": "Mend it."}, "it broke. Mend it."),
        ({"where": "conv_in", "remedy": "Mend it."}, "conv_in: it broke. Mend it."),
    ],
)
def test_text(parts, text):
    assert str(UserError("it broke.", **parts)) == text


def test_crosses_a_process_border():
    class_, arguments = UserError("a", where="b", remedy="c").__reduce__()[:2]
    again = pickle.loads(pickle.dumps(UserError("a", where="b", remedy="c")))
    assert (again.what, again.where, again.remedy) == ("a", "b", "c")
    assert type(again) is UserError
    assert callable(class_)
    assert arguments[1:] == ("a", "b", "c")


def test_words_that_a_spreadsheet_would_compute_are_text():
    computed = ("=1+1", "+1", "-x", "@sum", "\t=1", "\n=1", "  =1", "=cmd|' /C calc'!A0")
    assert [cell(text) for text in computed] == [f"'{text}" for text in computed]
    for plain in ("a=1", "", " ", 3, -0.5, True, "–5"):
        assert cell(plain) is plain
    assert cell(None) == ""


def test_names_stay_inside_their_folder(tmp_path):
    home = tmp_path / "home"
    (home / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_text("x")
    (home / "link").symlink_to(tmp_path / "secret")
    (home / "loop").symlink_to(home / "loop")
    for name in ("a.png", "sub/a.png", "sub/../a.png", "..a", "…"):
        assert inside(home, name) == home / name
    for name in (
        "../secret", "/etc/passwd", str(tmp_path / "secret"), "link", "sub/../../secret", "", ".",
        None, 3, "a\0b", "link/x",
    ):  # fmt: skip
        with pytest.raises(UserError, match="no file of this folder"):
            inside(home, name)
