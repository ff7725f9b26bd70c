"""A card that is full is said in plain words, with what would help."""

from __future__ import annotations

import weakref

import pytest
import torch

from vqdq.jobs import faults


def test_a_full_card_says_what_was_missing_and_what_to_keep_less() -> None:
    error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 59.00 MiB. GPU 0 has a total capacity of 7.79 GiB "
        "of which 12.50 MiB is free. Process 1 has 7.70 GiB memory in use."
    )
    found = faults.as_user_error(error, "unet")
    assert found is not None
    assert "59.00 MiB more were needed, 12.50 MiB were free" in found.what
    assert "59.00 MiB fewer decoded weights" in found.remedy
    assert faults.as_user_error(RuntimeError("shapes do not match"), "unet") is None
    plain = faults.as_user_error(MemoryError(), "unet")
    assert plain is not None
    assert plain.what == "there was not enough memory."


def test_what_the_failed_work_held_is_let_go() -> None:
    kept: list[weakref.ref[torch.Tensor]] = []

    def work() -> None:
        held = torch.zeros(3)
        kept.append(weakref.ref(held))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    try:
        work()
    except torch.OutOfMemoryError as error:
        assert kept[0]() is not None
        told = faults.as_user_error(error, "unet")
        assert kept[0]() is None
        assert told is not None
        assert told.what == "there was not enough memory."


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory: 9 bytes")])
def test_full_memory_is_told_where_no_module_can_be_read(error, monkeypatch):
    def full(*asked, **more):
        raise MemoryError(asked, more)

    with monkeypatch.context() as patch:
        patch.setattr("builtins.__import__", full)
        told = faults.as_user_error(error, "compress")
    assert told is not None
    assert told.what == "there was not enough memory."
