"""Layer rules as text and back."""

from __future__ import annotations

import dataclasses

import pytest

from vqdq import activations
from vqdq.errors import UserError
from vqdq.models import pipelines
from vqdq.recipe import load_recipe
from vqdq.ui import rules

PRESETS = sorted(path.stem for path in pipelines.presets_folder().glob("*.json"))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_becomes_lines_and_the_same_recipe(name: str) -> None:
    recipe = load_recipe(name, pipelines.presets_folder())
    special, general = rules.split(recipe)
    lines = (*rules.parse(rules.render(special)), general)
    again = dataclasses.replace(recipe, name="again", rules=lines)
    assert again.digest == recipe.digest


def test_settings_blank_lines_and_comments() -> None:
    text = "# attention\n\n*.attn2.* = trellis bits=4  # finer\nconv_in = keep\n"
    first, second = rules.parse(text)
    assert (first.pattern, first.method, first.params.to_json()["bits"]) == (
        "*.attn2.*",
        "trellis",
        4,
    )
    assert (second.pattern, second.method) == ("conv_in", None)
    assert rules.render((first, second)) == "*.attn2.* = trellis bits=4\nconv_in = keep"


def test_what_rounds_the_input_stands_behind_a_bar() -> None:
    (rule,) = rules.parse("*.attn2.* = trellis bits=4 | dgq bits=6 groups=16")
    assert (rule.method, rule.activation) == ("trellis", "dgq")
    assert rule.activation_params.to_json() | {"bits": 6, "groups": 16} == (
        rule.activation_params.to_json()
    )
    assert rules.render((rule,)) == "*.attn2.* = trellis bits=4 | dgq bits=6 groups=16"
    (bare,) = rules.parse("* = uniform|dynamic")
    assert rules.render((bare,)) == "* = uniform | dynamic"
    assert rules.parse(rules.render((bare,))) == (bare,)


@pytest.mark.parametrize("name", activations.names())
def test_every_activation_method_goes_through_a_line(name: str) -> None:
    kind = activations.get(name)
    params = kind.settings(small=False) if name == "fp8" else kind.settings(bits=5)
    rule = dataclasses.replace(
        rules.parse("* = trellis")[0], activation=name, activation_params=params
    )
    assert rules.parse(rules.render((rule,))) == (rule,)


@pytest.mark.parametrize(
    ("line", "what", "remedy"),
    [
        ("conv_in", "is not", "Write it like"),
        ("conv_in =", "is not", "Write it like"),
        ("= keep", "is not", "Write it like"),
        ("* = trelis", "unknown method", "trellis"),
        ("* = trellis bit=3", "unknown setting", "bits"),
        ("* = trellis bits=9", "out of range", "Use 2 to 6"),
        ("* = trellis bits", "name=value", "bits=4"),
        ("* = trellis bits=many", "not a whole number", "Use 2 to 6"),
        ("* = keep bits=3", "takes no settings", "Remove"),
        ("* = uniform symmetric=perhaps", "not true or false", ""),
        ("* = trellis |", "is not", "Write it like"),
        ("* = trellis | dgp", "unknown activation method", "dgq"),
        ("* = trellis | dgq group=8", "unknown setting", "groups"),
        ("* = trellis | dgq groups=3", "not offered", "1, 2, 4, 8, 16"),
        ("* = keep | dynamic", "leaves the input alone", "half"),
    ],
)
def test_a_fault_names_its_line(line: str, what: str, remedy: str) -> None:
    with pytest.raises(UserError) as caught:
        rules.parse(f"conv_out = keep\n{line}")
    assert caught.value.where == "layer rules, line 2"
    assert what in caught.value.what
    assert remedy in caught.value.remedy
