"""Full disks, too little memory, and a power cut: a spread of points; `make chaos` takes all."""

from __future__ import annotations

import pytest
import torch

from tests.chaos import full, nest, work

POINTS = {"compress": 4, "grid": 3}


@pytest.mark.parametrize("kind", POINTS)
def test_a_full_disk_is_told_and_nothing_is_half_written(kind, model, tmp_path):
    filler = full.Filler(kind, model, tmp_path)
    assert filler.order == []
    for number in range(POINTS[kind]):
        at = 1 + (number * (filler.writes - 1)) // (POINTS[kind] - 1)
        filler.full_at(at, lasting=number % 2 == 1)


@pytest.mark.parametrize("kind", ["calibrate", "generate"])
def test_files_are_on_the_disk_before_they_have_their_name(kind, model, tmp_path):
    assert full.Filler(kind, model, tmp_path).order == []


def test_the_history_survives_a_full_disk_at_every_write(tmp_path):
    writes, order = full.history_writes(tmp_path / "counted")
    assert order == []
    assert writes > 20
    for number in range(1, writes + 1):
        full.history_full_at(tmp_path / f"{number}", number)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("can't start new thread"),
    ],
)
def test_too_little_memory_is_told_and_work_goes_on(error, model, tmp_path):
    full.out_of_memory("compress", error, 12, model, tmp_path)
    assert len(work.fingerprint(tmp_path)) > 5


def test_a_limit_of_memory_leaves_nothing_half_written(model, tmp_path):
    for number, room in enumerate((0, 1 << 22, 1 << 25)):
        place = tmp_path / f"{number}"
        place.mkdir()
        ended = nest.run(work.limited, str(model), str(place), room, place=str(place))
        assert not ended.fault, ended.fault
        assert ended.code or ended.value in ("done", "there was not enough memory.")
        if ended.value != "done":
            ended = nest.run(work.compress, str(model), str(place), place=str(place))
            assert not ended.fault, ended.fault
        assert "unet/diffusion_pytorch_model.safetensors" in work.fingerprint(place)
