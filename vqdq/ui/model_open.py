"""Opening a model beside the page: a download may take an hour, and closing a page ends nothing."""

from __future__ import annotations

import threading

from vqdq.errors import Cancelled, UserError
from vqdq.jobs.faults import as_user_error
from vqdq.progress import Event
from vqdq.ui.desk import Desk


class Opening:
    """One model that is being opened in a thread of its own.

    Attributes:
        event: the last thing that was reported, or None.
        fault: why it could not be opened, or None; `stopped`: a person stopped it.
    """

    def __init__(self, desk: Desk, model: str) -> None:
        self.model = model
        self.event: Event | None = None
        self.fault: UserError | None = None
        self.stopped = False
        self._desk = desk
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="open-model")
        self._thread.start()

    @property
    def done(self) -> bool:
        """True when it ended, well or not."""
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Asks it to end; what was downloaded is kept."""
        self._stopping.set()

    def wait(self, seconds: float) -> bool:
        """Returns True when it ended within that time."""
        self._thread.join(seconds)
        return self.done

    def _report(self, event: Event, /) -> None:
        self.event = event
        if self._stopping.is_set():
            raise Cancelled

    def _work(self) -> None:
        try:
            self._desk.opened(self.model, report=self._report)
        except Cancelled:
            self.stopped = True
        except UserError as error:
            self.fault = error
        except (OSError, MemoryError, RuntimeError, ValueError) as error:
            self.fault = as_user_error(error, self.model) or UserError(
                f"{type(error).__name__}: {error}",
                where=self.model,
                remedy="Copy the model again; the demo can still be used.",
            )


class Openings:
    """What is being opened now, by model; the same model is opened once."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._lock = threading.Lock()
        self._known: dict[str, Opening] = {}

    def start(self, model: str) -> Opening:
        """Returns the opening of a model: the one under way, or a new one."""
        with self._lock:
            self._known = {name: each for name, each in self._known.items() if not each.done}
            if model not in self._known:
                self._known[model] = Opening(self._desk, model)
            return self._known[model]

    def stop(self, model: str) -> None:
        """Stops the opening of a model, if there is one."""
        with self._lock:
            found = self._known.get(model)
        if found is not None:
            found.stop()
