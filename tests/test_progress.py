"""Reporting is where work is cancelled."""

from __future__ import annotations

import pytest

from vqdq.errors import Cancelled
from vqdq.progress import CancelToken, Event, cancellable, silent


def test_silent_says_nothing():
    assert silent(Event(stage="load")) is None


def test_token():
    token = CancelToken()
    token.check()
    assert not token.cancelled
    token.cancel()
    assert token.cancelled
    with pytest.raises(Cancelled):
        token.check()


def test_cancellable_passes_events_until_cancelled():
    token, seen = CancelToken(), []
    report = cancellable(seen.append, token)
    report(Event(stage="a", done=1, total=2))
    token.cancel()
    with pytest.raises(Cancelled):
        report(Event(stage="b"))
    assert [event.stage for event in seen] == ["a"]


def test_cancel_during_the_report_is_noticed_at_once():
    token = CancelToken()
    report = cancellable(lambda _event: token.cancel(), token)
    with pytest.raises(Cancelled):
        report(Event(stage="a"))
