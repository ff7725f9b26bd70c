"""What a card can do, and why something is not done on it. Imports Triton only when asked.

On Turing (7.5) Triton's products of tiles of bytes do not compile: weights are un-rotated by
butterflies there, which gives the same bits, and integer products are torch's own. Ampere (8.0) has
everything but 8-bit floats, which come with Ada (8.9); before, the same values are multiplied in
fp16.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import metadata, util

import torch

CARD = "card"
OLDEST = (7, 5)
PRODUCTS = (8, 0)  # from here on Triton multiplies tiles
FLOATS = (8, 9)  # from here on the units multiply 8-bit floats
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
    "fp8_rows",
    "fp8_product",
    "trellis_product",
)
INSTEAD = {  # who computes on the card what has no kernel there; the processor does the rest
    "int8_product": "torch",
    "fp8_product": "torch",
}
LIBRARY = "fp8_product of many rows"
LIBRARY_ROWS = 128  # from here on a product waits for arithmetic; not measured on a card yet
_LIBRARY_RULE = f"torch's scaled_mm: linear layers in bfloat16, from {LIBRARY_ROWS} rows on"


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
        rows.append((f"{CARD} {op}", INSTEAD.get(op, "cpu") if why else "triton", why or how))
    fault = library_fault(torch.device("cuda", 0))
    rows.append((f"{CARD} {LIBRARY}", "triton" if fault else "torch", fault or _LIBRARY_RULE))
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
        return f"Triton has no products of tiles of bytes for {card.target}"
    if card.capability < FLOATS and op == "fp8_product":
        return f"{card.target} has no units for 8-bit floats: the same values in fp16, by torch"
    return ""


@cache
def library_fault(device: torch.device) -> str:
    """Returns why torch's own product of 8-bit floats is not used; "" where it is.

    Which cards it has been built for differs between versions, so it is tried once.
    """
    found = card(device.index or 0)
    if found is None:
        return absence()
    if found.capability < FLOATS:
        return refusal("fp8_product", found)
    from torch.nn import functional

    rows = torch.arange(1, 33, device=device)[:, None]
    codes = ((rows + torch.arange(64, device=device)) % 5 - 2.0).to(torch.float8_e4m3fn)
    scale = rows / 4
    given = (scale, functional.ScalingType.RowWise, scale.T, functional.ScalingType.RowWise)
    try:
        sums = functional.scaled_mm(codes, codes.T, *given, output_dtype=torch.bfloat16)
    except (RuntimeError, AttributeError) as error:
        return f"torch's scaled_mm fails ({str(error).partition(chr(10))[0]})"
    exact = (codes.double() @ codes.double().T * scale * scale.T).to(torch.bfloat16)
    return "" if torch.equal(sums, exact) else "torch's scaled_mm is not exact on small numbers"
