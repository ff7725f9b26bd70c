"""What `vqdq plan` says about execution modes: memory of the weights, seconds of decoding."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vqdq.cli.terminal import table
from vqdq.quantities import duration, size

if TYPE_CHECKING:
    from vqdq.models.modes import ModeEstimate
    from vqdq.recipe import Plan


def estimates(plan: Plan, cache_bytes: int | None) -> tuple[ModeEstimate, ...]:
    """Returns an estimate for each mode, computing in float32 as the commands draw."""
    import torch

    from vqdq.models.modes import mode_estimates

    return mode_estimates(plan, dtype=torch.float32, cache_bytes=cache_bytes)


def values(found: tuple[ModeEstimate, ...]) -> list[dict[str, Any]]:
    """Returns the estimates as JSON values."""
    return [asdict(each) | {"weight_bytes": each.weight_bytes} for each in found]


def lines(found: tuple[ModeEstimate, ...]) -> list[str]:
    """Returns a table: one line a mode."""
    rows = [("  drawn in mode", "weights in memory", "decoding (estimated)")]
    for each in found:
        if each.refusal:
            rows.append((f"  {each.mode}", f"not possible: {each.refusal}", ""))
            continue
        cache = "" if each.cache_bytes is None else f", {size(each.held_bytes)} of it kept decoded"
        more = f"{duration(each.decode_seconds)} a call" if each.decode_seconds else "once"
        rows.append((f"  {each.mode}", f"{size(each.weight_bytes)}{cache}", more))
    return table(rows)
