"""How long threads wait for each other before they sleep; set before torch is loaded.

OpenMP's threads spin for about a millisecond at the end of each loop. On a computer that does
something else as well, the one that all wait for may not run in that time: half a picture of the
embedded model (10 steps) took 10 to 39 s instead of 0.4 on two cores with other busy programs.
Spinning an eighth as long it takes 0.9 to 1.4 s beside two busy programs, and a whole picture on an
idle computer as long as before (0.78 s, measured in turn). Not spinning at all costs 70 % there.
"""

from __future__ import annotations

from collections.abc import MutableMapping

SPINS = {"GOMP_SPINCOUNT": "40000"}


def settle(environment: MutableMapping[str, str]) -> MutableMapping[str, str]:
    """Returns `environment` with a shorter spin, unless a person has set how to wait."""
    if "OMP_WAIT_POLICY" not in environment and "GOMP_SPINCOUNT" not in environment:
        environment.update(SPINS)
    return environment
