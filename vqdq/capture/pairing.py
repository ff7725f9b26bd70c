"""What one layer after another gives in two models on the same inputs: exact errors, streamed.

The reference and the variant make the same recorded call. Outputs of the reference are held only
until the variant has made its own, within a byte budget: layers that do not fit are compared on
another pass over the same call. Nothing is estimated and nothing is kept but sums.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vqdq.capture.records import ActivationRecord
from vqdq.capture.steps import GUIDED, SINGLE
from vqdq.errors import UserError

Floats = npt.NDArray[np.float32]
Run = Callable[[], object]

BUDGET = 256 << 20
"""What the reference's outputs of one pass may take."""


class Pairing:
    """Sums of ‖y‖² and ‖y − ŷ‖² by layer, step and half of the guidance.

    Drive it with any calls that both models can make:

        pairing = Pairing(reference, variant, record.layers, guided=True)
        for call in trajectories.calls:
            pairing.add(call.step, lambda: replay(reference, call), lambda: replay(variant, call))
        record = record.paired(*pairing.energies(record))
    """

    def __init__(
        self,
        reference: nn.Module,
        variant: nn.Module,
        layers: Iterable[str],
        *,
        guided: bool,
        budget: int = BUDGET,
    ) -> None:
        """Takes two denoisers of one architecture; nothing is hooked outside of `add`.

        Raises:
            UserError: a layer that one of them lacks: the variant is of another model.
        """
        self._layers = tuple(layers)
        modules = [dict(model.named_modules()) for model in (reference, variant)]
        for name in self._layers:
            if any(name not in known for known in modules):
                raise UserError(
                    "only one of the two models has this layer.",
                    where=name,
                    remedy="Choose a variant that was made of this model.",
                )
        self._reference, self._variant = (
            {name: known[name] for name in self._layers} for known in modules
        )
        self._halves = GUIDED if guided else SINGLE
        self._budget = budget
        self._sums: dict[tuple[str, int], npt.NDArray[np.float64]] = {}

    def add(self, step: int, reference: Run, variant: Run) -> int:
        """Adds one call at `step` (from 0) and returns how many passes it took.

        Args:
            reference, variant: make the call with either model; deterministic, for they may run
                more than once.
        """
        waiting = set(self._layers)
        passes = 0
        while waiting:
            held: dict[str, list[Tensor]] = {}
            with torch.no_grad(), _watching(self._reference, waiting, _Holder(held, self._budget)):
                reference()
            found = set(held)
            compare = _Comparer(held, lambda name, y, other: self._compare(name, step, y, other))
            with torch.no_grad(), _watching(self._variant, found, compare):
                variant()
            passes += 1
            if not found:
                break  # what is left did not run in this call
            waiting -= found
        return passes

    def energies(self, record: ActivationRecord) -> tuple[Floats, Floats]:
        """Returns ‖y‖² and ‖y − ŷ‖² in a record's order, [halves, layers, steps]; NaN: not paired.

        Raises:
            UserError: the record has other halves.
        """
        if record.halves != self._halves:
            raise UserError(
                f"the record has the halves {', '.join(record.halves)}, the calls "
                f"{', '.join(self._halves)}.",
                where="guidance",
                remedy="Record and pair with the same guidance.",
            )
        steps = record.scalars.absmax.shape[2]
        found = np.full((2, *record.scalars.absmax.shape), np.nan, np.float32)
        for (name, step), sums in self._sums.items():
            if name in record.layers and step < steps:
                found[:, :, record.layers.index(name), step] = sums
        return found[0], found[1]

    def _compare(self, name: str, step: int, y: Tensor, other: Tensor) -> None:
        if y.shape != other.shape:
            raise UserError(
                f"the outputs are {list(y.shape)} and {list(other.shape)}.",
                where=name,
                remedy="Choose a variant that was made of this model.",
            )
        truth, given = y.float(), other.detach().to(y.device, torch.float32)
        halves = len(self._halves)
        parts = truth.chunk(halves) if len(truth) % halves == 0 else (truth,) * halves
        errors = (given - truth).chunk(halves)
        errors = errors if len(errors) == len(parts) else (given - truth,) * halves
        sums = [[float(part.double().square().sum()) for part in side] for side in (parts, errors)]
        before = self._sums.get((name, step), np.zeros((2, halves)))
        self._sums[name, step] = before + np.array(sums)


class _Holder:
    """Holds outputs until the budget is full, but always the first."""

    def __init__(self, held: dict[str, list[Tensor]], budget: int) -> None:
        self._held, self._room, self._closed = held, budget, set[str]()

    def __call__(self, name: str, output: Tensor) -> None:
        size = output.numel() * output.element_size()
        if name in self._closed or (size > self._room and self._held and name not in self._held):
            self._closed.add(name)
            return
        self._room -= size
        self._held.setdefault(name, []).append(output.detach().clone())


class _Comparer:
    """Hands each output on with the reference's, in the order of the calls, and lets go of it."""

    def __init__(
        self, held: dict[str, list[Tensor]], compare: Callable[[str, Tensor, Tensor], None]
    ) -> None:
        self._held, self._compare = held, compare

    def __call__(self, name: str, output: Tensor) -> None:
        if self._held.get(name):
            self._compare(name, self._held[name].pop(0), output)


@contextlib.contextmanager
def _watching(
    modules: dict[str, nn.Module], names: set[str], see: Callable[[str, Tensor], None]
) -> Generator[None, None, None]:
    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                see(name, output)

        return hook

    with contextlib.ExitStack() as stack:
        for name in names:
            stack.callback(modules[name].register_forward_hook(watch(name)).remove)
        yield
