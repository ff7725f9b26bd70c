"""What a card can do, and why something is not done on it. Imports Triton only when asked.

On Turing (7.5) Triton's products of tiles do not compile: weights are un-rotated by butterflies
there, which gives the same bits, and integer products are torch's own. Ampere (8.0) and later have
everything that is used here. No kernel uses fp8: levels of 8 bits are not exact in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import metadata, util

import torch

CARD = "card"
OLDEST = (7, 5)
PRODUCTS = (8, 0)  # from here on Triton multiplies tiles
OLDEST_TRITON = (3, 4)

SEARCHES = ("trellis_encode", "trellis_feedback", "additive_encode", "additive_feedback")
OPERATIONS = (
    *SEARCHES,
    "unpack_bits",
    "hadamard",
    "feed_forward",
    "trellis_decode",
    "trellis_weight",
    "additive_decode",
    "additive_decode_rotated",
    "line_extremes",
    "row_codes",
    "own_codes",
    "int8_product",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """A card, as far as kernels care: its name and its compute capability."""

    name: str
    capability: tuple[int, int]

    @property
    def target(self) -> str:
        """What compilers call it, such as sm_90."""
        return f"sm_{self.capability[0]}{self.capability[1]}"


@cache
def card(index: int = 0) -> Card | None:
    """Returns the card of this number, None where torch sees none."""
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        return None
    return Card(
        name=torch.cuda.get_device_name(index),
        capability=torch.cuda.get_device_capability(index),
    )


def absence() -> str:
    """Returns why there is no card to compute on; "" where there is one."""
    if not torch.backends.cuda.is_built():
        return "no NVIDIA card is used: this torch is built without CUDA"
    if not torch.cuda.is_available():
        return "no NVIDIA card: torch finds none"
    return ""


@cache
def triton_fault() -> str:
    """Returns why Triton cannot be used, "" where it can."""
    if util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    version = _version()
    numbers = tuple(int(part) for part in version.split(".")[:2])
    if numbers < OLDEST_TRITON:
        return f"Triton {version} is older than 3.4"
    return ""


def status() -> tuple[tuple[str, str, str], ...]:
    """Returns (operation, backend, reason) for the cards of this machine; one row without any."""
    found = card()
    if found is None:
        return ((CARD, "none", absence()),)
    rows = [(CARD, "triton", f"{found.name}, {found.target}, Triton {_version()}")]
    if triton_fault():
        return ((CARD, "cpu", triton_fault()),)
    for op in OPERATIONS:
        why = refusal(op, found)
        how = f"compiled by Triton for {found.target}"
        rows.append((f"{CARD} {op}", "cpu" if why else "triton", why or how))
    return tuple(rows)


def _version() -> str:
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return "not installed"


def refusal(op: str, card: Card) -> str:
    """Returns why an operation has no kernel on this card; "" where it has one."""
    fault = triton_fault()
    if fault:
        return fault
    if card.capability < OLDEST:
        return f"{card.name} ({card.target}) is older than Turing"
    if card.capability < PRODUCTS and op == "int8_product":
        return f"Triton has no products of tiles for {card.target}"
    return ""
