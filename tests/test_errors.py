"""The fault a person can mend has a place, a fact and a next step."""

from __future__ import annotations

import pickle

import pytest

from vqdq.errors import UserError


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
