"""16-bit floats: exactly fp16, and nothing else."""

from __future__ import annotations

import numpy as np
import torch

from vqdq import codecs
from vqdq.codecs.base import WeightShape


def test_values_are_those_of_fp16() -> None:
    weight = torch.randn(24, 4 * 16, generator=torch.Generator().manual_seed(0)) * 0.02
    packed = codecs.encode(weight, "half", taps=4)
    expected = weight.numpy().astype(np.float16).astype(np.float32)
    assert np.array_equal(packed.decode().numpy(), expected)
    assert "weight" not in packed.tensors
    half = weight.half()
    assert torch.equal(codecs.encode(half, "half").decode(), half.float())


def test_a_weight_takes_sixteen_bits() -> None:
    shape = WeightShape(out_features=320, in_features=1280)
    assert codecs.create("half").storage(shape).bits_per_weight == 16
