"""What a person looks at in a recording; part of the session, so it lives below both."""

from __future__ import annotations

from dataclasses import dataclass

QUANTITIES = (
    ("peak_ratio", "Outliers", "Largest over median magnitude of what goes into each layer"),
    ("absmax", "Largest value", "Largest magnitude of what goes into each layer"),
    ("kurtosis", "Kurtosis", "3 for a bell curve, far more when few values stand out"),
    ("sqnr_db", "Drift", "What comes out, against FP16: signal over difference, in dB"),
)
HALVES = (("cond", "With the prompt"), ("uncond", "Without it"))


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareLook:
    """What a person looks at in a comparison; chosen: index of the variant on the light table."""

    chosen: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What a person looks at in a capture; a choice that is empty follows the capture.

    Attributes:
        layer, step: of the activations; `half`: "cond" or "uncond".
        word: index of the chosen word; `by_size`: channels sorted; `quantity`: of all layers.
        where: the attention layer whose scores and maps are shown; "" is the mean of all.
    """

    layer: str = ""
    step: int = -1
    half: str = "cond"
    word: int = -1
    by_size: bool = False
    quantity: str = "peak_ratio"
    where: str = ""
