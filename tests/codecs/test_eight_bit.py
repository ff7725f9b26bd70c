"""Weights as int8 levels: the same numbers as the decoded weight, bit for bit."""

from __future__ import annotations

import pytest
import torch

from vqdq import codecs
from vqdq.codecs import rotation


@pytest.mark.parametrize("bits", [2, 4, 6])
@pytest.mark.parametrize("block", [0, 64])
@pytest.mark.parametrize("taps", [1, 4])
def test_trellis_levels_are_the_decoded_weight(bits: int, block: int, taps: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    weight = torch.randn(40, 64 * taps, generator=generator)
    codec = codecs.create("trellis", bits=bits, rotation=block)
    packed = codec.encode(weight, taps=taps)
    eight = codec.eight_bit(packed)
    if block and taps > 1:
        assert eight is None
        return
    assert eight is not None
    assert eight.levels.dtype == torch.int8
    assert eight.block == block
    values = eight.levels.float() * eight.scales[:, None]
    if block:
        assert eight.signs is not None
        values = rotation.unrotate(values, eight.signs, block)
    assert torch.allclose(values, codec.decode(packed), rtol=1e-6, atol=1e-7)


def test_rotated_outputs_have_no_levels() -> None:
    codec = codecs.create("trellis", bits=3, output_rotation=64)
    assert codec.eight_bit(codec.encode(torch.randn(64, 64))) is None


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("clip", ["mse", "absmax"])
def test_even_grids_are_whole_numbers_where_they_fit(bits: int, symmetric: bool, clip: str) -> None:
    weight = torch.randn(9, 33, generator=torch.Generator().manual_seed(bits))
    codec = codecs.create("uniform", bits=bits, symmetric=symmetric, clip=clip)
    packed = codec.encode(weight)
    eight = codec.eight_bit(packed)
    if bits == 8 and symmetric:
        assert eight is None
        return
    if eight is None:  # a range much wider on one side
        assert bits == 8
        return
    assert eight.exact
    assert torch.equal(eight.levels.float() * eight.scales[:, None], codec.decode(packed))


def test_groups_of_columns_have_no_levels_a_row() -> None:
    codec = codecs.create("uniform", bits=4, group_size=16)
    assert codec.eight_bit(codec.encode(torch.randn(4, 33))) is None
    assert codecs.create("nf4").eight_bit(codecs.encode(torch.randn(4, 64), "nf4")) is None
