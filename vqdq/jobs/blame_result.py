"""What a finished search for layers to blame returns, as the JSON that lies in `result.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

if TYPE_CHECKING:
    from vqdq.models.blame_report import BlameReport
    from vqdq.models.repair_ways import Repair
    from vqdq.recipe import Plan

_BLOCKS = {
    "down_blocks": "down",
    "mid_block": "mid",
    "up_blocks": "up",
    "resnets": "resnet",
    "attentions": "attention",
    "downsamplers": "downsampler",
    "upsamplers": "upsampler",
    "transformer_blocks": "block",
    "single_transformer_blocks": "single block",
    "joint_transformer_blocks": "joint block",
}
"""Parts of diffusers' names, and what people call them."""


class Scores(TypedDict):
    """What one layer costs one area, MEASURED; None where a number is not finite.

    Attributes:
        gain_db: quality regained when the layer is put back to 16 bits; gain_error_db: its
            standard error over calls.
        damage_db: SQNR of the reference with only this layer quantized; low is bad.
        share: part of the whole model's squared error.
        step: the step at which putting it back regains most, from 0.
    """

    gain_db: float | None
    gain_error_db: float | None
    damage_db: float | None
    damage_error_db: float | None
    share: float | None
    step: int | None


class Way(TypedDict):
    """One way to repair a layer: kind and bits as in `repair_ways.Repair`.

    Attributes:
        added_bytes: exact; removed: ESTIMATED share of the error.
    """

    kind: str
    bits: int
    added_bytes: int
    removed: float


class BlamedLayer(TypedDict):
    """One compressed layer.

    Attributes:
        brief: its name for people, see `brief`.
        bytes: stored for it; sixteen_bit_bytes: what 16 bits would add to that.
        estimate_db: ESTIMATED `damage_db` of the area asked for, to first order; None without one.
        whole, region: None for a layer that was not measured.
    """

    name: str
    brief: str
    method: str
    activation: str
    bits_per_weight: float
    bytes: int
    sixteen_bit_bytes: int
    estimate_db: float | None
    whole: Scores | None
    region: Scores | None
    ways: list[Way]


class Offer(TypedDict):
    """Several repairs together, in place and MEASURED on the same calls.

    Attributes:
        sentence: for people; layers: their names, the most valuable for its bytes first.
        bits: of the repaired weights, 0 for inputs alone; None for a mix.
        budget_bytes: what it had to fit into, if anything.
        added_bytes, total_bytes: of the weight file, exact.
        before_db, after_db, gain_db: SQNR in the area asked for; predicted_gain_db: ESTIMATED.
        whole_db: SQNR of the whole picture afterwards.
        recipe: compresses to exactly this.
        proposed: the one to take without looking further.
    """

    sentence: str
    layers: list[str]
    bits: int | None
    budget_bytes: int | None
    added_bytes: int
    total_bytes: int
    before_db: float
    after_db: float
    gain_db: float
    predicted_gain_db: float
    whole_db: float
    recipe: dict[str, Any]
    proposed: bool


class BlameResult(TypedDict):
    """A finished search.

    Attributes:
        steps_measured: of the sampler, from 0.
        before_db: SQNR of the noise prediction; region_db: in the region, None without one.
        measured: how many of `layers` were measured; the others were estimated.
        offers: sets of repairs; empty where none would help.
        relearns: the variant was calibrated or fine-tuned, which a new compression does again.
        report: file of the `BlameReport`, the numbers behind everything here.
    """

    model: str
    variant: str
    label: str
    prompt: str
    seed: int
    steps: int
    guidance: float
    region: list[float]
    steps_measured: list[int]
    before_db: float
    region_db: float | None
    variant_bytes: int
    measured: int
    layers: list[BlamedLayer]
    offers: list[Offer]
    relearns: bool
    report: str
    seconds: float


def layer_rows(
    found: BlameReport, plan: Plan, ways: Mapping[str, Sequence[Repair]]
) -> list[BlamedLayer]:
    """Returns every compressed layer in the order of execution."""
    planned = {item.layer.name: item for item in plan.quantized}
    scores = [_scores(found, area) for area in range(found.areas)]
    rows: list[BlamedLayer] = []
    for place, name in enumerate(found.names):
        known = bool(found.measured[place])
        estimate = float(found.estimate[place])
        rows.append(
            BlamedLayer(
                name=name,
                brief=brief(name),
                method=found.methods[place],
                activation=found.activations[place],
                bits_per_weight=planned[name].bits_per_weight,
                bytes=found.bytes[place],
                sixteen_bit_bytes=found.repair_bytes[place],
                estimate_db=_finite(-10 * math.log10(estimate)) if estimate > 0 else None,
                whole=scores[0][place] if known else None,
                region=scores[1][place] if known and len(scores) > 1 else None,
                ways=[
                    Way(
                        kind=way.kind,
                        bits=way.bits,
                        added_bytes=way.added_bytes,
                        removed=way.removed,
                    )
                    for way in ways.get(name, ())
                ],
            )
        )
    return rows


def _scores(found: BlameReport, area: int) -> list[Scores]:
    columns = (
        found.gain_db(area),
        found.gain_error_db(area),
        found.damage_db(area),
        found.damage_error_db(area),
        found.share(area),
    )
    steps, by_step = found.by_step(area)
    return [
        Scores(
            gain_db=_finite(gain),
            gain_error_db=_finite(gain_error),
            damage_db=_finite(damage),
            damage_error_db=_finite(damage_error),
            share=_finite(share),
            step=steps[int(np.nanargmax(curve))] if np.isfinite(curve).any() else None,
        )
        for gain, gain_error, damage, damage_error, share, curve in zip(
            *columns, by_step.T, strict=True
        )
    ]


def brief(name: str) -> str:
    """Returns a layer's name as short as it stays unique in its kind of model.

    "up_blocks.2.resnets.1.conv1" -> "up 2 · resnet 1 · conv1";
    "…attentions.0.transformer_blocks.0.attn2.to_out.0" -> "… attention 0 · attn2.to_out".
    """
    parts = name.split(".")
    words: list[str] = []
    while len(parts) > 1 and parts[0] in _BLOCKS:
        word, number = _BLOCKS[parts.pop(0)], ""
        if parts[0].isdecimal():
            number = parts.pop(0)
        words.append(f"{word} {number}".strip())
    if len(words) > 2 and words[-1] == "block 0":
        words.pop()  # of most models, the only one there
    rest = ".".join(parts).replace("to_out.0", "to_out")
    return " · ".join((*words, rest)) if rest else " · ".join(words)


def _finite(value: float) -> float | None:
    """JSON knows neither infinity nor NaN."""
    return float(value) if math.isfinite(value) else None
