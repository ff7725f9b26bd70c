"""The parts of a report before they become files, and what several kinds of report share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from vqdq.recipe import Recipe
from vqdq.report.document import facts
from vqdq.ui import rules


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """One report.

    Attributes:
        sections: HTML; empty ones are left out.
        rows: of the CSV, all with the same keys, and `table`: its text where it exists already.
        values: of the JSON.
    """

    title: str
    subtitle: str
    sections: tuple[str, ...]
    rows: Sequence[Mapping[str, Any]]
    values: Mapping[str, Any]
    table: str = ""


def certificate(proof: Mapping[str, Any]) -> str:
    """Returns the same-seed certificate: what was equal, and in red what was not."""
    if not proof:
        return '<p class="note">This run carries no certificate.</p>'
    start = proof.get("same_start")
    same = "from the same noise, bit for bit" if start in (True, None) else "from DIFFERENT noise"
    wrong = "".join(f'<p class="bad">{escape(str(line))}</p>' for line in proof.get("problems", ()))
    versions = " · ".join(f"{name} {each}" for name, each in (proof.get("versions") or {}).items())
    kernels = " · ".join(f"{name}: {each}" for name, each in (proof.get("kernels") or {}).items())
    return wrong + facts(
        {
            "All pictures started": same,
            "SHA-256 of the noise": proof.get("initial_latent_sha256"),
            "Scheduler": proof.get("scheduler"),
            "Device": proof.get("device"),
            "Versions": versions,
            "Kernels": kernels,
        }
    )


def passed(row: Mapping[str, Any]) -> str:
    """Returns what the judge of the demo model says about a picture; "" without a judge."""
    verdict = row.get("verdict")
    if not verdict:
        return ""
    wrong = [name for name, fine in verdict.items() if not fine and name != "passed"]
    return f"wrong: {', '.join(wrong)}" if wrong else "shows what was asked"


def recipe_text(recipe: Recipe) -> str:
    """Returns a recipe as its rules, one a line, and as the JSON that compresses to it again."""
    lines = rules.render(recipe.rules)
    whole = json.dumps(recipe.to_json(), indent=1, ensure_ascii=False)
    return f"{lines}\n\n{whole}"
