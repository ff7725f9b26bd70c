"""What a person looks at in the search for layers to blame; part of the session."""

from __future__ import annotations

from dataclasses import dataclass

RANKS = (
    ("share", "Share", "Its part of the whole error: half of what its repair removes and what it"
     " does alone"),
    ("gain_db", "Put back", "Quality regained when it is put back to 16 bits"),
    ("damage_db", "Alone", "Quality left when it is the only compressed layer"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class BlameLook:
    """A choice that is empty follows what is there.

    Attributes:
        variant: the compressed model to look into; "" is the first beside the picture.
        area: of the result on display: "region" or "whole".
        by: what the table is sorted by, one of `RANKS`; `everything`: all its rows.
        offer: which set of repairs; -1 is the proposed one.
        made: the compression that was started here.
    """

    variant: str = ""
    area: str = "region"
    by: str = "share"
    everything: bool = False
    offer: int = -1
    made: str = ""
