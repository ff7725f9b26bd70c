"""Fine-tuning: what is known is found again, nothing gets worse, interrupted equals whole."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn

from tests.models import tiny
from vqdq.calibration import FinetuneParams
from vqdq.codecs import create, encode
from vqdq.codecs.base import Packed
from vqdq.errors import Cancelled, UserError
from vqdq.layers.matrix import kind_of, weight_matrix
from vqdq.layers.quantized import QuantizedLayer
from vqdq.layers.surgery import quantize_
from vqdq.models.finetune import FinetuneResult, finetune
from vqdq.models.learning import stored
from vqdq.models.trajectory import Call, Trajectories, record
from vqdq.progress import Event

TRAIN = ["a red circle", "a blue square", "a red square", "a blue circle"]
HELD_OUT = ["a circle above a square", "a red circle above a blue square"]
PARAMS = FinetuneParams(steps=12, batch_size=4, learning_rate=3e-3, precision="float32")
KEPT = ("conv_in", "conv_out", "time_embedding")


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionPipeline:
    made = tiny.pipeline(tmp_path_factory.mktemp("finetune"))
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def student(pipe: StableDiffusionPipeline) -> nn.Module:
    return compressed(pipe.unet, "uniform", bits=3)


@pytest.fixture(scope="module")
def data(pipe: StableDiffusionPipeline) -> tuple[Trajectories, Trajectories]:
    return recorded(pipe)


@pytest.fixture(scope="module")
def result(student: nn.Module, data: tuple[Trajectories, Trajectories]) -> FinetuneResult:
    return finetune(student, *data, PARAMS)


def compressed(unet: nn.Module, method: str, **params: object) -> nn.Module:
    """Returns a copy of `unet` with packed layers, the rest in 16 bits."""
    made = copy.deepcopy(unet)
    packed: dict[str, Packed] = {}
    for name, layer in made.named_modules():
        if kind_of(layer) is not None and not name.startswith(KEPT):
            matrix, taps = weight_matrix(layer)
            packed[name] = encode(matrix, method, taps=taps, **params)
    quantize_(made, packed)
    for parameter in made.parameters():
        parameter.data = parameter.data.half().float()
    return made


def recorded(pipe: StableDiffusionPipeline) -> tuple[Trajectories, Trajectories]:
    return (
        record(pipe, TRAIN, steps=4, guidance=3.0, seed=1),
        record(pipe, HELD_OUT, steps=4, guidance=3.0, seed=50),
    )


def same(first: FinetuneResult, second: FinetuneResult) -> bool:
    return (
        first.history == second.history
        and all(torch.equal(first.tensors[key], second.tensors[key]) for key in first.tensors)
        and all(
            torch.equal(first.packed[name].tensors[key], second.packed[name].tensors[key])
            for name, packed in first.packed.items()
            for key in packed.tensors
        )
    )


def is_the_start(found: FinetuneResult, student: nn.Module) -> bool:
    start = stored(student)
    begun = replace(found, packed=start.packed, tensors=start.tensors)
    return same(found, begun)


def test_it_learns_and_keeps_the_format(
    student: nn.Module, data: tuple[Trajectories, Trajectories], result: FinetuneResult
) -> None:
    assert result.after > result.before + 0.5
    assert result.steps == 12
    assert [step for step, _ in result.history] == [0, 2, 4, 6, 8, 10, 12]
    assert result.history[0][1] == result.before
    layers = {n: m for n, m in student.named_modules() if isinstance(m, QuantizedLayer)}
    assert result.packed.keys() == layers.keys()
    for name, packed in result.packed.items():
        assert packed.storage == layers[name].packed.storage
        assert torch.equal(packed.tensors["codes"], layers[name].packed.tensors["codes"])
    assert all(tensor.dtype == torch.float16 for tensor in result.tensors.values())
    state = student.state_dict()
    inside = {f"{name}.{key}" for name, p in result.packed.items() for key in p.tensors}
    assert set(result.tensors) == {key for key in state if key not in inside}
    assert all(tensor.shape == state[key].shape for key, tensor in result.tensors.items())
    again = copy.deepcopy(student)  # what comes back is what was judged
    for name, packed in result.packed.items():
        layer = again.get_submodule(name)
        for key, tensor in packed.tensors.items():
            layer.get_buffer(key).copy_(tensor)
        layer.release()  # type: ignore[operator]
    for key, tensor in result.tensors.items():
        again.get_parameter(key).data.copy_(tensor)
    from vqdq.metrics.trajectory import sqnr_by_step

    measured = sqnr_by_step(again, data[1])
    assert measured.raw_overall_db == pytest.approx(result.after, abs=1e-3)


def test_the_student_stays_as_it_was(
    student: nn.Module, data: tuple[Trajectories, Trajectories]
) -> None:
    before = {key: value.clone() for key, value in student.state_dict().items()}
    needs = {key: p.requires_grad for key, p in student.named_parameters()}
    finetune(student, *data, replace(PARAMS, steps=2))
    after = student.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert needs == {key: p.requires_grad for key, p in student.named_parameters()}
    assert all(p.grad is None for p in student.parameters())


class Single(nn.Module):
    """A denoiser of one convolution, whose row scales a few predictions determine."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(4, 16, 3, padding=1)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.layer(sample) + timestep.reshape(-1, 1, 1, 1) / 1000,)


def single_calls(module: nn.Module, seed: int) -> Trajectories:
    """Returns four steps of two prompts, without guidance."""
    generator = torch.Generator().manual_seed(seed)
    calls: list[Call] = []
    for step in range(4):
        args = (torch.randn(2, 4, 6, 6, generator=generator), torch.tensor(1000 - 250 * step))
        with torch.no_grad():
            output = module(*args)[0]
        calls.append(
            Call(step=step, timestep=float(args[1]), prompts=(0, 1), args=args, kwargs={},
                 output=output)
        )  # fmt: skip
    return Trajectories(
        prompts=("a", "b"), steps=4, guidance=1.0, calls=tuple(calls), latents=calls[-1].output
    )


def test_row_scales_that_were_changed_are_found_again() -> None:
    truth = Single()
    matrix, taps = weight_matrix(truth.layer)
    right = encode(matrix, "uniform", taps=taps, bits=4)
    quantize_(truth, {"layer": right})
    truth.layer.bias.data = truth.layer.bias.data.half().float()
    factors = torch.linspace(0.8, 1.25, 16)
    wrong = copy.deepcopy(truth)
    moved = create("uniform", right.params).rescaled(right, factors)
    wrong.layer.get_buffer("scales").copy_(moved.tensors["scales"])
    wrong.layer.release()  # type: ignore[operator]
    data = single_calls(truth, 0), single_calls(truth, 1)
    found = finetune(wrong, *data, replace(PARAMS, steps=200, learning_rate=2e-2))
    rows = found.packed["layer"].tensors["scales"].float() / right.tensors["scales"].float()
    torch.testing.assert_close(rows.flatten(), torch.ones(16), rtol=2e-3, atol=0)
    assert found.before < 22
    assert found.after > 55


def test_a_student_that_equals_the_teacher_stays_equal(
    pipe: StableDiffusionPipeline, student: nn.Module
) -> None:
    teacher = copy.copy(pipe)
    teacher.unet = student
    found = finetune(student, *recorded(teacher), replace(PARAMS, steps=4))
    assert found.after >= found.before > 90
    assert is_the_start(found, student)


@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_a_hostile_learning_rate_returns_the_start(
    student: nn.Module, data: tuple[Trajectories, Trajectories], rate: float
) -> None:
    found = finetune(student, *data, replace(PARAMS, steps=6, learning_rate=rate))
    assert found.after == found.before
    assert is_the_start(found, student)


@pytest.mark.parametrize("stop", [1, 7])
def test_an_interrupted_run_goes_on_to_the_same_end(
    student: nn.Module,
    data: tuple[Trajectories, Trajectories],
    result: FinetuneResult,
    tmp_path: Path,
    stop: int,
) -> None:
    place = tmp_path / "work" / "learning"

    def stopping(event: Event, /) -> None:
        if event.done == stop:
            raise Cancelled

    with pytest.raises(Cancelled):
        finetune(student, *data, PARAMS, report=stopping, checkpoint=place)
    assert place.is_file()
    seen: list[Event] = []
    found = finetune(student, *data, PARAMS, report=seen.append, checkpoint=place)
    assert seen[0].done == stop
    assert all(event.stage == "finetune" and event.total == 12 for event in seen)
    assert same(found, result)
    assert found.after == result.after
    assert not place.exists()


def test_a_checkpoint_of_other_work_is_refused(
    student: nn.Module, data: tuple[Trajectories, Trajectories], tmp_path: Path
) -> None:
    def stopping(event: Event, /) -> None:
        if event.done == 1:
            raise Cancelled

    with pytest.raises(Cancelled):
        finetune(student, *data, PARAMS, report=stopping, checkpoint=tmp_path / "state")
    with pytest.raises(UserError, match="another fine-tuning"):
        finetune(student, *data, replace(PARAMS, seed=1), checkpoint=tmp_path / "state")


def test_codebooks_learn_too(
    pipe: StableDiffusionPipeline, data: tuple[Trajectories, Trajectories]
) -> None:
    student = compressed(
        pipe.unet, "additive", num_codebooks=1, codebooks="layer", rounds=0, beam=1
    )
    found = finetune(student, *data, replace(PARAMS, steps=6))
    assert found.after > found.before + 0.5
    start = stored(student)
    moved = [
        not torch.equal(packed.tensors["codebooks"], start.packed[name].tensors["codebooks"])
        for name, packed in found.packed.items()
    ]
    assert all(moved)


def test_history_is_finite(result: FinetuneResult) -> None:
    assert all(math.isfinite(db) for _, db in result.history)
    assert result.after == max(db for _, db in result.history)


def test_gradients_add_up_over_batches(
    student: nn.Module, data: tuple[Trajectories, Trajectories]
) -> None:
    several = replace(PARAMS, steps=10, batch_size=2, accumulate=2)
    found = finetune(student, *data, several)
    assert found.steps == 10
    assert found.after > found.before
