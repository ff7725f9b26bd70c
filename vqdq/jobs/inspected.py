"""What an inspection wrote, opened again: the records of the reference and of each variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdq.activations.attention import AttentionParams
from vqdq.capture import (
    ActivationRecord,
    AttentionRecord,
    TrajectoryRecord,
    WeightRecord,
    WeightRecords,
)
from vqdq.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Inspected:
    """The records of one model.

    Attributes:
        label: for people, unlike any other model's; `picture`: uint8 [h, w, 3].
        activity: what went into the layers; `attention`: None where it was not recorded.
        errors: along the steps, against the reference; None for the reference.
        previews: pictures after the steps `shown` of the reference and of this variant, uint8
            [2, shown, h, w, 3]; empty for the reference.
        weights: by layer, those that differ from the reference's.
        scores: how the model rounds attention scores; None where it does not.
    """

    label: str
    picture: npt.NDArray[np.uint8]
    activity: ActivationRecord
    attention: AttentionRecord | None
    errors: TrajectoryRecord | None
    previews: npt.NDArray[np.uint8]
    shown: tuple[int, ...]
    weights: Mapping[str, WeightRecord]
    scores: AttentionParams | None = None


def opened(
    folder: Path,
    result: Mapping[str, Any],
    scores: Sequence[AttentionParams | None] = (),
) -> tuple[Inspected, ...]:
    """Returns the reference and the variants of an inspection in `folder`.

    Args:
        result: of the job, as `result.json` and `report.json` hold it.
        scores: of the reference and of each variant, where the caller has their recipes.

    Raises:
        UserError: a file is missing, damaged or from another version.
    """
    if not isinstance(result.get("reference"), dict):
        raise UserError(
            "this is no result of an inspection.", where=str(folder), remedy="Record it again."
        )
    parts: list[dict[str, Any]] = [result["reference"], *result.get("variants", ())]
    labels: list[str] = []
    found: list[Inspected] = []
    for index, part in enumerate(parts):
        label, count = str(part["label"]), 1
        while label in labels:
            count += 1
            label = f"{part['label']} ({count})"
        labels.append(label)
        found.append(_opened(folder, part, label, scores[index] if index < len(scores) else None))
    return tuple(found)


def _opened(
    folder: Path, part: Mapping[str, Any], label: str, scores: AttentionParams | None
) -> Inspected:
    from vqdq.models.following import Following  # heavy: torch and diffusers

    names = {kind: part.get(kind) for kind in ("attention", "trajectory", "weights")}
    way = Following.load(folder / names["trajectory"]) if names["trajectory"] else None
    return Inspected(
        label=label,
        picture=_picture(folder / part["image"]),
        activity=ActivationRecord.load(folder / part["activations"]),
        attention=AttentionRecord.load(folder / names["attention"]) if names["attention"] else None,
        errors=None if way is None else replace(way.errors[0], label=label),
        previews=np.zeros((0, 0, 0, 0, 3), np.uint8) if way is None else way.previews,
        shown=() if way is None else way.shown,
        weights=WeightRecords.load(folder / names["weights"]).records if names["weights"] else {},
        scores=scores,
    )


def _picture(path: Path) -> npt.NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise UserError(
            "The picture is missing or damaged.", where=str(path), remedy="Record it again."
        ) from error
