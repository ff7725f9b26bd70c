"""Fine-tuning: the compressed denoiser learns to predict what the full-precision one predicts.

VQDM's last step (arXiv 2409.00492, section 3): along the teacher's own trajectories everything but
the codes learns, that is row scales, codebooks, norms, biases, and the layers kept in 16 bits. What
differs, and why: every step of the sampler counts by its error relative to the start's, so that
the few steps with large errors do not decide alone; half of the weight is on the guided prediction,
which is what the sampler uses; a batch mixes prompts and steps; the result is judged as it will be
stored, and only taken when it is better.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from vqdq.calibration import FinetuneParams
from vqdq.codecs.base import Packed
from vqdq.errors import Cancelled, UserError
from vqdq.models.batches import Samples
from vqdq.models.learning import (
    Judge,
    Objective,
    Stored,
    learner,
    parameter_groups,
    predict,
    stored,
)
from vqdq.models.trajectory import Trajectories
from vqdq.models.weights import open_weights, write_weights
from vqdq.progress import Event, Report, silent
from vqdq.tensors import TensorSpec

_JUDGED_PER_STEP = 4  # held-out prompts of each step: a gain of 0.1 dB shows
_JUDGEMENTS = 6
_SAVE_EVERY = 50  # steps that an interruption costs at most
_WARM_SHARE = 0.1
_BETAS = (0.9, 0.99)


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneResult:
    """What was learnt; the start itself where nothing better was found.

    Attributes:
        packed: by layer, codes as they were.
        tensors: the other floating parameters in float16, by state-dict key.
        before, after: noise-prediction SQNR on held-out calls, dB, of what is stored.
        history: (step, dB) of every judgement, the start first.
        steps: that were done.
    """

    packed: dict[str, Packed]
    tensors: dict[str, torch.Tensor]
    before: float
    after: float
    history: tuple[tuple[int, float], ...]
    steps: int


def finetune(
    student: nn.Module,
    train: Trajectories,
    held_out: Trajectories,
    params: FinetuneParams,
    *,
    report: Report = silent,
    checkpoint: Path | None = None,
) -> FinetuneResult:
    """Returns the best that was found on the way, by the error on `held_out`.

    Args:
        student: a denoiser with quantized layers; it comes back as it was.
        train, held_out: of the full-precision model, with the same steps and guidance.
        report: stage "finetune", one unit a step; may raise `Cancelled`, after which the same call
            goes on from `checkpoint`.
        checkpoint: a file that keeps what an interrupted run has learnt; it is removed at the end.

    Raises:
        UserError: the checkpoint belongs to other work.
    """
    place = next(student.parameters()).device
    samples = Samples(train, place)
    judged = Samples(held_out, place).spread(_JUDGED_PER_STEP, params.batch_size)
    judge = Judge(student, judged, held_out.guidance, held_out.steps)
    start = stored(student)
    first = judge.errors(start)
    if first.raw_db == math.inf or not first.finite:
        return _result(start, [(0, first.raw_db)], first.raw_db, 0)
    objective = Objective(first, params.guided_weight)
    reduced = computing_dtype(params.precision, place)
    module = learner(student, reduced, codebooks=params.codebooks)
    run = _Run(module, params, objective.of(first), first.raw_db)
    if checkpoint is not None:
        run.identity = _identity(params, start, train)
        run.restore_(checkpoint)
    marks = _marks(params.steps)
    try:
        while run.step < params.steps:
            message = f"{run.best_db:.2f} dB held out, {first.raw_db:.2f} at the start"
            report(Event(stage="finetune", done=run.step, total=params.steps, message=message))
            generator = torch.Generator().manual_seed(params.seed * 1_000_003 + run.step)
            for _ in range(params.accumulate):
                batch = samples.draw(params.batch_size, generator)
                with torch.autocast(place.type, reduced, enabled=reduced != torch.float32):
                    prediction = predict(run.module, batch)
                loss = objective.loss(prediction, batch, train.guidance) / params.accumulate
                loss.backward()  # pyright: ignore[reportUnknownMemberType]
            if not run.advance_():
                break  # the learning rate is too high: nothing after this is better
            if run.step in marks:
                candidate = stored(run.module)
                errors = judge.errors(candidate)
                value = objective.of(errors) if errors.finite else math.inf
                raw_better = errors.finite and errors.raw_db >= first.raw_db
                better = raw_better and errors.guided_db >= first.guided_db
                run.judged_(value if better else math.inf, errors.raw_db)
            if checkpoint is not None and run.step % _SAVE_EVERY == 0:
                run.save(checkpoint)
    except Cancelled:
        if checkpoint is not None:
            run.save(checkpoint)
        raise
    report(Event(stage="finetune", done=params.steps, total=params.steps))
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    best = start
    if run.best:
        run.take_best_()
        best = stored(run.module)
    return _result(best, run.history, run.best_db, run.step)


def computing_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Returns the dtype of the products: "auto" is bfloat16 where the device has it natively."""
    if precision != "auto":
        return torch.float32 if precision == "float32" else torch.bfloat16
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        native = bool(able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16"))
        return torch.bfloat16 if native else torch.float32
    return torch.bfloat16


class _Run:
    """Where learning stands: the module, its optimizer, the best so far."""

    def __init__(self, module: nn.Module, params: FinetuneParams, value: float, db: float) -> None:
        self.module = module
        self.step = 0
        self.history = [(0, db)]
        self.best_value, self.best_db = value, db
        self.best: dict[str, torch.Tensor] = {}
        self.identity = ""
        self._params = params
        groups = parameter_groups(module, params.learning_rate)
        self._optimizer = torch.optim.Adam(groups, betas=_BETAS)
        self._learning = {key: p for key, p in module.named_parameters() if p.requires_grad}

    def advance_(self) -> bool:
        """Takes one step of Adam, with a warm start and a cosine to zero.

        Returns False, and stays, where the gradients are not finite.
        """
        total = self._params.steps
        warm = min(1.0, (self.step + 1) / max(1.0, _WARM_SHARE * total))
        share = warm * 0.5 * (1 + math.cos(math.pi * self.step / total))
        for group in self._optimizer.param_groups:
            group["lr"] = share * group["rate"]
        norms = [p.grad.norm() for p in self._learning.values() if p.grad is not None]
        if not bool(torch.isfinite(torch.stack(norms)).all()):
            return False
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.step += 1
        return True

    def judged_(self, value: float, db: float) -> None:
        """Notes a judgement, and the parameters when they are the best."""
        self.history.append((self.step, db))
        if value < self.best_value:
            self.best_value, self.best_db = value, db
            self.best = {key: p.detach().clone() for key, p in self._learning.items()}

    def take_best_(self) -> None:
        """Goes back to the best parameters."""
        with torch.no_grad():
            for key, parameter in self._learning.items():
                parameter.copy_(self.best[key])

    def save(self, path: Path) -> None:
        """Writes everything that the next step depends on, whole or not at all."""
        tensors = {f"now.{key}": p.detach() for key, p in self._learning.items()}
        tensors |= {f"best.{key}": tensor for key, tensor in self.best.items()}
        for key, parameter in self._learning.items():
            state = self._optimizer.state.get(parameter, {})
            tensors |= {f"adam.{name}.{key}": value for name, value in state.items()}
        specs = [TensorSpec.of(key, tensor) for key, tensor in tensors.items()]
        facts = {
            "identity": self.identity,
            "step": str(self.step),
            "history": json.dumps(self.history),
            "best_value": repr(self.best_value),
            "best_db": repr(self.best_db),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_weights(path, specs, facts, lambda spec: tensors[spec.name])

    def restore_(self, path: Path) -> None:
        """Goes on from a file that `save` wrote, if there is one.

        Raises:
            UserError: it belongs to other work, or is damaged.
        """
        if not path.is_file():
            return
        file = open_weights(path)
        if file.metadata.get("identity") != self.identity:
            raise UserError(
                "belongs to another fine-tuning.",
                where=str(path),
                remedy="Remove it to start anew, or choose another place.",
            )
        with torch.no_grad():
            for key, parameter in self._learning.items():
                parameter.copy_(file.read(f"now.{key}"))
                if f"best.{key}" in file.tensors:
                    self.best[key] = file.read(f"best.{key}").to(parameter.device)
                moments = {
                    name: file.read(f"adam.{name}.{key}")
                    for name in ("step", "exp_avg", "exp_avg_sq")
                    if f"adam.{name}.{key}" in file.tensors
                }
                if moments:
                    place = parameter.device
                    self._optimizer.state[parameter] = {
                        name: value if name == "step" else value.to(place)
                        for name, value in moments.items()
                    }
        self.step = int(file.metadata["step"])
        self.history = [(int(step), float(db)) for step, db in json.loads(file.metadata["history"])]
        self.best_value = float(file.metadata["best_value"])
        self.best_db = float(file.metadata["best_db"])


def _marks(steps: int) -> frozenset[int]:
    """Returns the steps after which the student is judged, the last among them."""
    return frozenset(-(-steps * turn // _JUDGEMENTS) for turn in range(1, _JUDGEMENTS + 1))


def _identity(params: FinetuneParams, start: Stored, train: Trajectories) -> str:
    """Returns a digest of what decides the result."""
    digest = hashlib.sha256(json.dumps(params.to_json(), sort_keys=True).encode())
    digest.update(json.dumps([train.prompts, train.steps, train.guidance]).encode())
    for name, packed in start.packed.items():
        digest.update(name.encode())
        for key in sorted(packed.tensors):
            tensor = packed.tensors[key].detach().cpu().contiguous()
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    for key, tensor in start.tensors.items():
        digest.update(key.encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _result(
    best: Stored, history: list[tuple[int, float]], after: float, steps: int
) -> FinetuneResult:
    return FinetuneResult(
        packed=best.packed,
        tensors=best.tensors,
        before=history[0][1],
        after=after,
        history=tuple(history),
        steps=steps,
    )
