"""How often somebody may do something: a bucket of tokens for each person or address."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

MOST_BUCKETS = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """At most `burst` at once, and one more every `seconds`."""

    burst: float
    seconds: float


LOGINS = Rate(burst=30, seconds=6.0)
UPLOADS = Rate(burst=20, seconds=3.0)
REQUESTS = Rate(burst=400, seconds=1 / 60)
"""Anything that a page asks: eight of them at one address, each asking 1.5 times a second, need
a fifth of it."""
RUNS = Rate(burst=40, seconds=2.0)


class Buckets:
    """One bucket for each who; the ones that were not used longest are forgotten."""

    def __init__(self, rate: Rate, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def wait(self, who: str) -> float:
        """Returns 0 after taking a token, or the seconds until there is one."""
        with self._lock:
            now = self._clock()
            left, since = self._left.pop(who, (self._rate.burst, now))
            left = min(self._rate.burst, left + (now - since) / self._rate.seconds)
            allowed = left >= 1.0
            self._left[who] = (left - allowed, now)
            while len(self._left) > MOST_BUCKETS:
                self._left.popitem(last=False)
            return 0.0 if allowed else (1.0 - left) * self._rate.seconds
