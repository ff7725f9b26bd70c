"""What a person looks at in the Runs tab; parts of the session, so they live below its sections."""

from __future__ import annotations

from dataclasses import dataclass

SECTIONS = {"history": "History", "models": "Models", "frontier": "Frontier"}


@dataclass(frozen=True, kw_only=True, slots=True)
class RunsLook:
    """The section and what is searched in the history; `page` counts from 0."""

    section: str = "history"
    words: str = ""
    kind: str = ""
    state: str = ""
    page: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontierLook:
    """The two axes of the frontier, and the model whose panel is open."""

    cost: str = "size"
    quality: str = "psnr"
    model: str = ""
