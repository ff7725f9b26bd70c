"""What a person looks at in a recording; part of the session, so it lives below both."""

from __future__ import annotations

from dataclasses import dataclass

SECTIONS = (
    ("map", "All layers, all steps"),
    ("layer", "What goes into the layer"),
    ("weights", "What the layer holds"),
    ("words", "Where each word is looked at"),
    ("trajectory", "On the way from noise to picture"),
)
HALVES = (("cond", "With the prompt"), ("uncond", "Without it"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What a person looks at in a capture; a choice that is empty follows the capture.

    Attributes:
        variant: which of the recorded variants is shown beside the reference, from 1.
        layer, step: of the activations and weights; `half`: "cond" or "uncond".
        quantity, scale, order, match, which: of the map: its colours, "auto", "log" or "linear",
            rows as they "run" or by "value", a pattern of names, and "reference", "variant" or
            "difference".
        by_size: channels sorted; `raised`: the surface as mountains instead of a flat map.
        word: index of the chosen word; `where`: the attention layer whose scores and maps are
            shown, "" is the mean of all, "step" the mean at the chosen step.
        by: mass of the tokens by "step" or "head"; `inside`: the layer of self-attention.
    """

    variant: int = 1
    layer: str = ""
    step: int = -1
    half: str = "cond"
    quantity: str = ""
    scale: str = "auto"
    order: str = "run"
    match: str = ""
    which: str = "variant"
    by_size: bool = False
    raised: bool = False
    word: int = -1
    where: str = ""
    by: str = "step"
    inside: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Screen:
    """How this page shows any capture.

    Attributes:
        narrow: a phone, whose figures have their panels below each other.
        wanted: sections that were scrolled to or asked for; the others are not drawn.
    """

    narrow: bool = False
    wanted: frozenset[str] = frozenset({"map"})
