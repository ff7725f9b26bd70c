"""One training run shared by several single-threaded processes on one machine, or by none: on a
card a single process does everything.

Parameters, their moving average, gradients and optimizer state lie in shared memory. Each process
computes the gradients of its own batch, then updates its own share of the parameters with the mean
gradient of all: no weights are ever sent, and the optimizer's work is divided too. Single-threaded
processes, because on a busy machine two threads that wait for each other were measured eleven times
slower than one.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path

import torch
from torch import Tensor, nn

from vqdq.demo import muon, pieces

CPU = torch.device("cpu")
_FACTS = ("steps", "seconds", "progress")
Loss = Callable[[torch.Generator, float], tuple[Tensor, dict[str, float]]]
"""(generator, progress in 0..1) -> (loss to differentiate, numbers to log)."""

_PATIENCE_SECONDS = 900.0  # one process may wait this long for another, which may be evaluating


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """How long and how fast to train. Progress is the larger of samples and seconds done over
    their limits."""

    samples: int
    seconds: float
    batch: int  # per process
    warmup: int = 40  # steps
    constant: float = 0.45  # share of the run before the cosine begins
    final: float = 0.02  # multiplier at the end
    average: float = 0.998  # decay of the moving average of the weights
    checkpoint_seconds: float = 90.0

    def multiplier(self, step: int, progress: float) -> float:
        """The factor on the learning rates."""
        warm = min(1.0, (step + 1) / self.warmup)
        late = max(0.0, (progress - self.constant) / (1 - self.constant))
        return warm * (
            self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, late)))
        )


class Trainer:
    """A model in shared memory, its moving average, and what is needed to go on after a stop."""

    def __init__(
        self,
        model: nn.Module,
        matrices: list[nn.Parameter],
        *,
        rates: muon.Rates,
        schedule: Schedule,
        folder: Path,
        seed: int,
        workers: int,
        device: torch.device = CPU,
    ) -> None:
        assert workers == 1 or device.type == "cpu"
        self.model = model.to(device).share_memory()  # nothing is shared on a card
        self.rates, self.schedule, self.folder = rates, schedule, folder
        self.seed, self.workers = seed, workers
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.slots = muon.make_slots(self.parameters, {id(p) for p in matrices})
        self.average = [p.detach().clone().share_memory_() for p in self.parameters]
        self.gradients = [
            [torch.zeros_like(p.data).share_memory_() for p in self.parameters]
            for _ in range(workers)
        ]
        self.state = torch.zeros(len(_FACTS), dtype=torch.float64).share_memory_()
        self._load_()

    @property
    def finished(self) -> bool:
        """Whether the schedule's end was reached."""
        return bool(self.state[2] >= 1)

    def run(self, loss: Loss, report: Callable[[int], None] | None = None) -> None:
        """Trains until the schedule's end; `report(samples)` runs in one process at each
        checkpoint."""
        if self.finished:
            return
        context = multiprocessing.get_context("fork")
        barrier = context.Barrier(self.workers, timeout=_PATIENCE_SECONDS)
        processes = [
            context.Process(target=self._work, args=(rank, barrier, loss, report))
            for rank in range(1, self.workers)
        ]
        for process in processes:
            process.start()
        finished = False
        try:
            self._work(0, barrier, loss, report)
            finished = True
        finally:
            if not finished:
                barrier.abort()  # the others end instead of waiting
            for process in processes:
                process.join()

    @torch.no_grad()
    def use_average_(self) -> None:
        """Puts the moving average in place of the model's weights, for good, on the processor."""
        for parameter, average in zip(self.parameters, self.average, strict=True):
            parameter.copy_(average)
        self.model.to(CPU)

    def _work(
        self, rank: int, barrier: Barrier, loss: Loss, report: Callable[[int], None] | None
    ) -> None:
        torch.set_num_threads(1)
        schedule = self.schedule
        mine = self._share(rank)
        for parameter, gradient in zip(self.parameters, self.gradients[rank], strict=True):
            parameter.grad = gradient
        start, saved = time.monotonic() - float(self.state[1]), time.monotonic()
        log: dict[str, float] = {}
        while True:
            step, progress = int(self.state[0]), float(self.state[2])
            if progress >= 1:
                break
            generator = torch.Generator().manual_seed(
                (self.seed * 1_000_003 + step) * self.workers + rank
            )
            for gradient in self.gradients[rank]:
                gradient.zero_()
            value, numbers = loss(generator, progress)
            value.backward()
            for name, number in numbers.items():
                log[name] = log.get(name, number) * 0.98 + number * 0.02
            barrier.wait()
            self._update_(mine, step, schedule.multiplier(step, progress))
            barrier.wait()
            if rank == 0:
                samples = (step + 1) * schedule.batch * self.workers
                seconds = time.monotonic() - start
                self.state[0], self.state[1] = step + 1, seconds
                self.state[2] = max(samples / schedule.samples, seconds / schedule.seconds)
                if step % 50 == 49:
                    self._log(samples, seconds, log)
                if time.monotonic() - saved > schedule.checkpoint_seconds or self.state[2] >= 1:
                    self._save()
                    saved = time.monotonic()
                    if report is not None:
                        report(samples)
            barrier.wait()

    def _share(self, rank: int) -> list[int]:
        """Indices of the parameters that process `rank` updates: largest first, to the least
        loaded."""
        load = [0.0] * self.workers
        shares: list[list[int]] = [[] for _ in range(self.workers)]
        order = sorted(range(len(self.parameters)), key=lambda i: -self.parameters[i].numel())
        for index in order:
            least = load.index(min(load))
            shares[least].append(index)
            load[least] += self.parameters[index].numel()
        return shares[rank]

    @torch.no_grad()
    def _update_(self, mine: list[int], step: int, multiplier: float) -> None:
        gradients: list[Tensor] = []
        for index in mine:
            total = self.gradients[0][index].clone()
            for other in self.gradients[1:]:
                total += other[index]
            gradients.append(total / self.workers)
        slots = [self.slots[index] for index in mine]
        muon.step_(slots, gradients, self.rates, multiplier, step + 1)
        decay = min(self.schedule.average, (step + 1) / (step + 10))
        for index in mine:
            self.average[index].lerp_(self.parameters[index].data, 1 - decay)

    def _log(self, samples: int, seconds: float, log: dict[str, float]) -> None:
        row = {"samples": samples, "seconds": round(seconds, 1)}
        line = json.dumps(row | {k: round(v, 5) for k, v in log.items()})
        print(line, flush=True)
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(line + "\n")

    def _save(self) -> None:
        steps, seconds, progress = self.state.tolist()
        facts = {"steps": steps, "seconds": seconds, "progress": progress}
        pieces.save(self.folder, self._tensors(), facts)

    @torch.no_grad()
    def _load_(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        found = pieces.load(self.folder)
        if found is None:
            return
        tensors, facts = found
        self.state.copy_(torch.tensor([facts[name] for name in _FACTS], dtype=torch.float64))
        for name, mine in self._tensors().items():
            mine.copy_(tensors[name])

    def _tensors(self) -> dict[str, Tensor]:
        """Everything that training goes on from, by name."""
        found = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for index, (average, slot) in enumerate(zip(self.average, self.slots, strict=True)):
            found |= {f"average.{index}": average, f"first.{index}": slot.first}
            if slot.second is not None:
                found[f"second.{index}"] = slot.second
        return found
