"""Bit packing is exact, dense and little-endian for every width."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqdq import packing
from vqdq.errors import UserError


@settings(max_examples=60)
@given(bits=st.integers(1, 16), data=st.data())
def test_unpack_inverts_pack(bits: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=200))
    tensor = torch.tensor(values, dtype=torch.int32)
    stream = packing.pack(tensor, bits)
    assert stream.dtype == torch.uint8
    assert len(stream) == packing.packed_bytes(len(values), bits) == -(-len(values) * bits // 8)
    assert packing.unpack(stream, bits, len(values)).tolist() == values


@settings(max_examples=30)
@given(bits=st.integers(1, 16), data=st.data())
def test_the_stream_is_one_large_integer(bits: int, data: st.DataObject) -> None:
    """Independent definition: value i times 2^(i*bits), summed, in little-endian bytes."""
    values = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=50))
    whole = sum(value << (index * bits) for index, value in enumerate(values))
    expected = whole.to_bytes(packing.packed_bytes(len(values), bits), "little")
    assert bytes(packing.pack(torch.tensor(values), bits).tolist()) == expected


def test_chunks_meet_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_CHUNK", 16)
    values = torch.randint(0, 8, (101,), generator=torch.Generator().manual_seed(0))
    stream = packing.pack(values, 3)
    monkeypatch.undo()
    assert torch.equal(stream, packing.pack(values, 3))
    assert torch.equal(packing.unpack(stream, 3, 101), values.int())


@pytest.mark.parametrize("bits", [0, 17, -1])
def test_impossible_widths_are_named(bits: int) -> None:
    with pytest.raises(UserError, match="cannot be packed"):
        packing.pack(torch.zeros(3, dtype=torch.int32), bits)


@pytest.mark.parametrize("values", [[0, 8], [-1, 3]])
def test_values_that_do_not_fit_are_named(values: list[int]) -> None:
    with pytest.raises(UserError, match="do not fit in 3 bits"):
        packing.pack(torch.tensor(values), 3)


def test_a_short_stream_is_named() -> None:
    with pytest.raises(UserError, match="3 bytes hold fewer than 9 values of 3 bits"):
        packing.unpack(torch.zeros(3, dtype=torch.uint8), 3, 9)
