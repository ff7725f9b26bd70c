"""Files written beside the work: compressing a record takes as long as drawing a picture."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from vqdq.jobs.faults import disk_faults


class Shelf:
    """Writes one file after the other in a thread; all are whole when its block ends.

    A fault is raised at the next `put`, or at the end of the block.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._waiting: list[Future[None]] = []

    def put(self, name: str, save: Callable[[Path], None]) -> str:
        """Returns the name, after asking that `save` writes the file of that name."""
        for done in [each for each in self._waiting if each.done()]:
            self._waiting.remove(done)
            done.result()
        self._waiting.append(self._pool.submit(self._write, save, self._folder / name))
        return name

    def _write(self, save: Callable[[Path], None], path: Path) -> None:
        with disk_faults(self._folder):
            save(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: object, _trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True)
        if kind is None:
            for each in self._waiting:
                each.result()
