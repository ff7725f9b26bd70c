"""What rounding activations does to the demo model, by method, bits and weights."""

from __future__ import annotations

from collections import Counter
from typing import Any

from benchmarks.activation_variants import VARIANTS
from benchmarks.evidence import Bench, cells
from benchmarks.timing import table
from vqdq.errors import UserError
from vqdq.layers.execution import executions
from vqdq.models.denoisers import denoiser


class ActivationBench(Bench):
    """Rows that also remember how many layers ran in which arithmetic."""

    def described(self, small: Any) -> dict[str, Any]:
        found = executions(denoiser(small)[1]).values()
        return {"arithmetic": Counter(item.kind for item in found)}


def rows() -> list[dict[str, Any]]:
    """Returns the measurements of every variant; finished rows are found on the disk."""
    bench = ActivationBench()
    found = [bench.floor()]
    for variant in VARIANTS:
        try:
            found.append(bench.row(variant))
        except UserError as error:
            print(f"{variant.name}: {error}", flush=True)
            continue
        print(_line(found[-1]), flush=True)
    return found


def _line(row: dict[str, Any]) -> list[str]:
    known = cells(row)
    counts = row.get("arithmetic", {})
    words = ", ".join(
        f"{counts[kind]} {kind}" for kind in ("integer", "simulated") if counts.get(kind)
    )
    return [*known[:3], words or "–", *known[4:]]


def run() -> str:
    """Returns the table as Markdown."""
    head = [
        "variant", "bits/weight", "MB", "layers", "SQNR, dB", "latent cosine", "PSNR, dB (95 %)",
        "SSIM", "as asked, % (95 %)",
    ]  # fmt: skip
    return table(head, [_line(row) for row in rows()])
