"""Every codec's declaration becomes a form, and what is entered becomes its settings again."""

from __future__ import annotations

import dataclasses

import gradio as gr
import pytest

from vqdq import codecs
from vqdq.errors import UserError
from vqdq.params import Params, describe, param
from vqdq.ui import forms


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Example(Params):
    bits: int = param(3, label="Bits", unit="bits", low=2, high=8)
    scale: float = param(0.5, label="Scale", low=0.0, high=1.0)
    mode: str = param("a", label="Mode", choices=("a", "b"))
    many: int = param(1, label="Many", choices=tuple(range(1, 9)))
    exact: bool = param(True, label="Exact")
    seed: int = param(0, label="Seed")
    note: str = param("", label="Note", advanced=True, reference="arXiv 1")


def drawn(params: type[Params], **options) -> forms.Form:
    with gr.Blocks():
        return forms.build(params, **options)


def test_each_kind_gets_the_control_it_asks_for() -> None:
    kinds = {name: type(c).__name__ for name, c in drawn(Example).components.items()}
    assert kinds == {
        "bits": "Slider",
        "scale": "Slider",
        "mode": "Radio",
        "many": "Dropdown",
        "exact": "Checkbox",
        "seed": "Number",
        "note": "Textbox",
    }


def test_range_unit_and_default_come_from_the_declaration() -> None:
    slider = drawn(Example).components["bits"]
    assert (slider.minimum, slider.maximum, slider.step, slider.value) == (2, 8, 1, 3)


@pytest.mark.parametrize("name", codecs.names())
def test_every_codec_goes_through_its_form_unchanged(name: str) -> None:
    settings = codecs.get(name).settings
    form = drawn(settings)
    assert list(form.components) == [info.name for info in describe(settings)]
    values = {key: component.value for key, component in form.components.items()}
    assert forms.read(settings, values) == settings()
    shown = [update["value"] for update in forms.write(form, settings())]
    assert shown == list(settings().to_json().values())


def test_numbers_arrive_as_the_page_sends_them() -> None:
    read = forms.read(Example, {"bits": 4.0, "scale": 1, "seed": "7"})
    assert (read.bits, read.scale, read.seed) == (4, 1.0, 7)
    assert isinstance(read.bits, int)
    assert isinstance(read.scale, float)


@pytest.mark.parametrize(
    ("values", "where", "what"),
    [
        ({"bits": 9}, "bits", "out of range"),
        ({"bits": 2.5}, "bits", "whole number"),
        ({"bits": None}, "Bits", "empty"),
        ({"seed": "seven"}, "Seed", "not a number"),
        ({"mode": "c"}, "mode", "not offered"),
    ],
)
def test_bad_values_name_the_setting(values, where: str, what: str) -> None:
    with pytest.raises(UserError) as caught:
        forms.read(Example, values)
    assert where in caught.value.where
    assert what in caught.value.what
    assert caught.value.remedy
