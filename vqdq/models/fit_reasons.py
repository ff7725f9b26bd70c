"""Why a model fits a card the way that is offered, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vqdq.models.fit_options import BUS, HOW, SMALL, STEPS, FitOption

_BUS = f"{BUS / 1e9:g} GB/s (PCIe 4.0 x16, assumed)"


def with_reasons(
    chosen: FitOption, considered: Sequence[FitOption], saved: tuple[int, int], plain: str
) -> FitOption:
    """The option with why nothing faster was taken, and what its way costs.

    Args:
        considered: the options of the same recipe and the same wishes, the fastest first.
        saved: bytes of what the wishes are about, in 16 bits and packed.
        plain: what would be without them, a sentence.
    """
    reasons = [f"{chosen.quality}."]
    if chosen.also:
        before, after = saved
        noun = "Text encoders" if len(chosen.also) == 1 else "Text encoders and decoder"
        noun = "The decoder" if chosen.others == "decoder" else noun
        verb = "takes" if chosen.others == "decoder" else "take"
        unit, name = (1e9, "GB") if before >= SMALL else (1e6, "MB")
        amount = f"{after / unit:.1f} {name} instead of {before / unit:.1f} {name}"
        reasons.append(f"{noun} {verb} {amount}. {plain}")
    faster = considered[: considered.index(chosen)]
    kept = next((each for each in faster if each.one_at_a_time == chosen.one_at_a_time), None)
    decoded = chosen.how not in ("", HOW["resident"])
    if chosen.offload:
        least = min(each.total_bytes for each in faster if not each.offload)
        reasons.append(
            f"The packed weights ({size(chosen.waiting_bytes)}) wait in main memory, each layer"
            f" comes over one ahead: with them on the card it would take at least {size(least)}."
            f" Copying takes {duration(chosen.transfer_seconds)} a picture, estimated at {_BUS}."
        )
    elif decoded:
        held = "Each layer"
        if chosen.cache_bytes is not None:
            reasons.append(f"{size(chosen.cache_bytes)} of its weights stay decoded.")
            held = "The rest"
        why = "" if kept is None else f": all kept decoded, it would take {size(kept.total_bytes)}"
        reasons.append(f"{held} is decoded each time it is used{why}.")
    if chosen.one_at_a_time:
        together = min(
            each.total_bytes
            for each in considered
            if not each.one_at_a_time and each.offload <= chosen.offload
        )
        reasons.append(
            f"Each component is on the card only while it works: all at once, they would take"
            f" {size(together)}."
        )
    if chosen.seconds >= 1:
        most, less = ("at most ", ", less where the card itself decodes") if decoded else ("", "")
        reasons.append(
            f"That adds {most}about {chosen.seconds:.0f} s to a picture of {STEPS} steps"
            f" (estimated{less})."
        )
    return replace(chosen, reasons=tuple(reasons))


def duration(seconds: float) -> str:
    """Returns estimated seconds, as coarse as they are known: "3.1 s", "under 0.1 s"."""
    return f"{seconds:.1f} s" if seconds >= 0.1 else "under 0.1 s"


def size(count: float) -> str:
    """Returns estimated bytes with one decimal, as in the sums: "2.6 GB", "80.0 MB"."""
    return f"{count / 1e9:.1f} GB" if count >= SMALL else f"{count / 1e6:.1f} MB"
