"""The optional measures of a comparison: opened once, before anything is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vqdq.errors import UserError
from vqdq.jobs.requests import CompareRequest
from vqdq.metrics import extras

if TYPE_CHECKING:
    from PIL.Image import Image


class Measures:
    """What a request asks for beside our own numbers.

    Raises:
        UserError: a measure that cannot be had on this computer; it says what is missing.
    """

    def __init__(self, request: CompareRequest) -> None:
        self._clip = None
        self._lpips = request.lpips
        if request.clip:
            from vqdq.models.clip_score import ClipScore  # heavy: transformers

            self._clip = ClipScore(request.clip)
        missing = {each.name: each.missing for each in extras.available()}["lpips"]
        if request.lpips and missing:
            raise UserError("LPIPS cannot be measured here.", where="lpips", remedy=missing)

    def of(self, image: Image, prompt: str, reference: Image | None = None) -> dict[str, float]:
        """Returns the measures of a picture by name; LPIPS needs the reference."""
        found: dict[str, float] = {}
        if self._clip is not None:
            found["clip"] = self._clip.score(image, prompt)
        if self._lpips and reference is not None:
            found["lpips"] = extras.lpips(reference, image)
        return found
