"""Products of bytes are exact sums, and what is not exact on a machine is not used."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from vqdq import kernels
from vqdq.kernels import int8_products
from vqdq.kernels.int8_products import convolution, linear, pack_convolution, pack_linear

# Without VNNI oneDNN adds pairs of products in 16 bits: `support` refuses it there.
ONEDNN = int8_products._fault("onednn")  # pyright: ignore[reportPrivateUsage]
exact = pytest.mark.skipif(bool(ONEDNN), reason=f"oneDNN {ONEDNN}")


@pytest.mark.parametrize("backend", [pytest.param("onednn", marks=exact), "torch"])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 17, 5), (40, 90, 33), (130, 64, 64)])
def test_a_product_is_the_sum_in_whole_numbers(
    backend: int8_products.Backend, sizes: tuple[int, int, int]
) -> None:
    rows, inputs, outputs = sizes
    generator = torch.Generator().manual_seed(rows)
    codes = torch.randint(0, 256, (rows, inputs), generator=generator, dtype=torch.uint8)
    levels = torch.randint(-128, 128, (outputs, inputs), generator=generator, dtype=torch.int8)
    packed = pack_linear(levels, backend)
    sums = codes.long() @ levels.long().T
    assert torch.equal(linear(codes, packed).long(), sums)
    scales, bias = torch.rand(outputs, generator=generator), torch.randn(outputs)
    shifted = (codes.long() - 200) @ levels.long().T
    wanted = 0.5 * scales.double() * shifted.double()
    found = linear(codes, packed, scale=0.5, zero=200, column_scales=scales, bias=bias)
    assert torch.allclose(found.double(), wanted + bias, rtol=1e-6, atol=1e-3)
    other = torch.randn(rows, outputs, generator=generator)
    found = linear(
        codes, packed, scale=0.5, zero=200, column_scales=scales, bias=bias, onto=other.clone()
    )
    assert torch.allclose(found.double(), wanted + other, rtol=1e-6, atol=1e-3)


@exact
@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_is_the_sum_in_whole_numbers(groups: int) -> None:
    generator = torch.Generator().manual_seed(groups)
    codes = torch.randint(0, 256, (2, 9, 8, 10), generator=generator, dtype=torch.uint8)
    kernel = torch.randint(-128, 128, (6, 10 // groups, 3, 2), generator=generator)
    packed = pack_convolution(kernel.to(torch.int8), (2, 1), (1, 2), groups)
    wanted = functional.conv2d(
        codes.permute(0, 3, 1, 2).double(), kernel.double(), None, (2, 1), 0, (1, 2), groups
    ).permute(0, 2, 3, 1)
    assert torch.equal(convolution(codes, packed).double(), wanted)
    other = torch.randint(-9, 9, wanted.shape, generator=generator).float()
    found = convolution(codes, packed, onto=other.clone())
    assert torch.equal(found.double(), wanted + other)


def test_what_overflows_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def saturated(*args: object, **kwargs: object) -> torch.Tensor:
        return linear(*args, **kwargs).clamp(-(2**20), 2**20)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(int8_products, "linear", saturated)
    int8_products.support.cache_clear()
    try:
        backend, reason = int8_products.support()
        assert backend == ""
        assert reason.count("overflows on this processor") == 2
        status = {item.op: item for item in kernels.status()}[kernels.PRODUCTS]
        assert status.backend == "none"
        assert status.reason == reason
    finally:
        int8_products.support.cache_clear()
