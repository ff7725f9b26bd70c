"""How the suite is spread over processes: a file stays on one, and two of them hold a browser.

The page's tests wait more than they compute, so a third process works beside them; a third browser
would only slow the other two down.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

BROWSERS = (
    ("test_page", "test_grid", "test_blind_page", "test_inspect_browser"),
    ("test_reliability", "test_runs", "test_compare", "test_targets", "test_inputs", "test_blame"),
)
"""Files of about as many seconds each; one that is missing here gets a browser of its own."""
LONG = (
    "test_cluster", "test_worker", "test_kills", "test_executors", "test_full",
    "test_readme", "test_model_panel", "test_api", "test_plugin", "test_activations",
    "test_at_home", "test_compressor", "test_sweep", "test_additive", "test_inspect_views",
    "test_people",
)  # fmt: skip
"""Begun early, so that at the end nobody waits for one of them."""


def rank(path: Path) -> int:
    """Returns where a file stands in the order in which files are begun."""
    if any(path.stem in files for files in BROWSERS):
        return 0
    return 1 if path.stem in LONG else 2


class Spread(LoadFileScheduling):
    """Files as units of work, those of one browser as one unit, in the order of collection."""

    def __init__(self, config: pytest.Config, log: object) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)  # type: ignore[arg-type]

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        groups = [number for number, files in enumerate(BROWSERS) if Path(file).stem in files]
        return f"browser {groups[0]}" if groups else file
