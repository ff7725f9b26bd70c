"""A finished capture, opened: its pictures and records, each read when it is first looked at."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vqdq.activations.attention import AttentionParams
from vqdq.capture import ActivationRecord, AttentionRecord, TrajectoryRecord, WeightRecord
from vqdq.capture.weights import WeightRecords
from vqdq.errors import UserError
from vqdq.jobs.run import RunRecord, read_json
from vqdq.models.following import Following
from vqdq.recipe import load_recipe
from vqdq.ui.look import HALVES, Look


@dataclass(frozen=True, kw_only=True, eq=False)
class Side:
    """One model's part of a capture.

    Attributes:
        label: "FP16" or the variant's name; `part`: its entry of the result.
        folder: of the run; `model`: of the compressed model, where it may be gone.
    """

    label: str
    part: Mapping[str, Any]
    folder: Path
    model: Path

    def why_not(self, what: str) -> str:
        """Returns why there is no "attention" or "trajectory"; "" where nobody said."""
        return str(self.part.get(f"{what}_reason") or "")

    @cached_property
    def picture(self) -> npt.NDArray[np.uint8]:
        """The drawn picture, [h, w, 3]."""
        path = self.folder / self.part["image"]
        try:
            with Image.open(path) as image:
                return np.asarray(image.convert("RGB"))
        except OSError as error:
            raise UserError(
                "The picture is missing.", where=str(path), remedy="Record again."
            ) from error

    @cached_property
    def activity(self) -> ActivationRecord:
        """What went into the layers."""
        return ActivationRecord.load(self.folder / self.part["activations"])

    @cached_property
    def attention(self) -> AttentionRecord | None:
        """The attention scores; None for a model without cross-attention."""
        name = self.part.get("attention")
        return AttentionRecord.load(self.folder / name) if name else None

    @cached_property
    def following(self) -> Following | None:
        """The way from noise to picture beside the reference's; None for the reference."""
        name = self.part.get("trajectory")
        return Following.load(self.folder / name) if name else None

    @property
    def trajectory(self) -> TrajectoryRecord | None:
        """The error along the steps, under this label; None where it was not recorded."""
        found = () if self.following is None else self.following.errors
        mine = [record for record in found if record.label == self.label] or list(found[:1])
        return replace(mine[0], label=self.label) if mine else None

    @cached_property
    def weights(self) -> Mapping[str, WeightRecord]:
        """The weights that differ from the reference's, by layer; empty for the reference."""
        name = self.part.get("weights")
        return WeightRecords.load(self.folder / name).records if name else {}

    @cached_property
    def scores(self) -> AttentionParams | None:
        """How the model's recipe rounds attention scores; None where it does not, or is gone."""
        path = self.model / "recipe.json"
        try:
            found = load_recipe(path, self.model).attention if path.is_file() else None
        except UserError:
            return None  # of a later version: the levels are left out
        return found if found is not None and found.scores != "off" else None


@dataclass(frozen=True, kw_only=True, eq=False)
class Capture:
    """A finished capture.

    Attributes:
        run: its id; `sides`: the reference and the variants in the asked order.
        layer, step: kept in most detail; `seconds`: what recording took.
        figures: what was drawn of it, by `inspect_figures.drawn`; `pen`: held while a section is
            made, for the clock and a click may ask for the same one at once.
    """

    run: str
    folder: Path
    sides: tuple[Side, ...]
    layer: str
    step: int
    seconds: float
    figures: dict[Any, Any] = field(default_factory=dict[Any, Any], repr=False)
    pen: threading.RLock = field(default_factory=threading.RLock, repr=False)

    @property
    def reference(self) -> Side:
        """The 16-bit model's part."""
        return self.sides[0]

    def variant(self, look: Look) -> Side | None:
        """Returns the variant that is shown; None when only the reference was recorded."""
        return self.sides[look.variant] if len(self.sides) > 1 else None

    def shown(self, look: Look) -> tuple[Side, ...]:
        """Returns the reference and the variant that is shown."""
        found = self.variant(look)
        return (self.reference,) if found is None else (self.reference, found)

    def attention(self, look: Look) -> list[tuple[str, AttentionRecord]]:
        """Returns the attention records on display with their labels; empty if one is missing."""
        found = [(side.label, side.attention) for side in self.shown(look)]
        kept = [(label, record) for label, record in found if record is not None]
        return kept if len(kept) == len(found) else []

    @property
    def steps(self) -> int:
        """Number of sampler steps."""
        return len(self.reference.activity.timesteps)


@lru_cache(maxsize=2)
def open_capture(folder: Path, stamp: float, models: Path) -> Capture:
    """Returns the capture in a run's folder; kept, for `stamp` says when it was finished.

    Args:
        models: the workspace's folder of compressed models.

    Raises:
        UserError: the result is missing.
    """
    del stamp
    result = read_json(folder / "result.json")
    if result is None:
        raise UserError("The result is missing.", where=str(folder), remedy="Record again.")
    sides = tuple(
        Side(
            label="FP16" if index == 0 else str(part["label"]),
            part=part,
            folder=folder,
            model=models / Path(str(part["variant"])).name,
        )
        for index, part in enumerate([result["reference"], *result.get("variants", ())])
    )
    return Capture(
        run=folder.name,
        folder=folder,
        sides=sides,
        layer=result["layer"],
        step=int(result["step"]),
        seconds=float(result.get("seconds") or 0.0),
    )


def of_run(run: RunRecord) -> Capture:
    """Returns the capture of a finished run.

    Raises:
        UserError: a file is missing or damaged.
    """
    return open_capture(run.folder, run.finished or 0.0, run.folder.parents[1] / "models")


def settled(capture: Capture, look: Look) -> Look:
    """Returns the look with everything that follows the capture filled in, and in its bounds.

    Raises:
        UserError: a record is missing or damaged.
    """
    variants = len(capture.sides) - 1
    activity = capture.reference.activity
    layer = look.layer if look.layer in activity.layers else capture.layer
    step = capture.step if look.step < 0 else look.step
    return replace(
        look,
        variant=min(max(look.variant, 1), max(variants, 1)),
        layer=layer,
        step=min(step, len(activity.timesteps) - 1),
        half=look.half if look.half in dict(HALVES) else "cond",
        which=look.which if variants else "reference",
    )
