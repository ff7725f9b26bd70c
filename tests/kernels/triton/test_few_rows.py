"""Few rows times a weight that is decoded on the way: the product with the decoded weight."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.triton.test_decoding import DEVICE, on_card, trellis
from vqdq.kernels import backend, few_rows, reference
from vqdq.kernels.backend import interpreted
from vqdq.kernels.triton import few_rows as kernel


@pytest.mark.parametrize(
    ("count", "bits", "state_bits", "outputs", "columns", "block"),
    [
        (1, 3, 12, 33, 256, 128),  # outputs of two tiles, the second nearly empty
        (5, 2, 8, 9, 140, 4),  # columns that no tile divides
        (17, 4, 10, 261, 96, 1),  # more than one tile of rows; a sequence goes on to row 261
        (32, 6, 12, 70, 512, 256),
        (3, 3, 16, 530, 64, 64),  # sequences of 256 rows
    ],
)
def test_the_product_is_that_with_the_decoded_weight(
    count: int, bits: int, state_bits: int, outputs: int, columns: int, block: int
) -> None:
    codes, table, scales, signs = trellis(outputs, columns, bits, state_bits)
    weight = reference.trellis_weight(codes, table, bits, scales, signs, block).double()
    x, bias = torch.randn(count, columns), torch.randn(outputs)
    expected = x.double() @ weight.T + bias.double()
    size = x.double().abs() @ weight.T.abs() + bias.abs()
    given = on_card(codes, table, scales, signs, bias)
    apart = torch.stack((x, x), 1).to(DEVICE)[:, 0]  # rows that lie apart
    with interpreted():
        assert few_rows.takes(apart)
        found = few_rows.trellis_product(
            apart, *given[:2], bits, *given[2:4], block, given[4]
        )  # fmt: skip
        half = few_rows.trellis_product(
            apart.half()[None], *given[:2], bits, *given[2:4], block
        )  # fmt: skip
    assert found.dtype == torch.float32
    assert ((found.cpu().double() - expected).abs() < 2**-18 * size).all()
    assert half.shape == (1, count, outputs)
    wanted = x.half().double() @ weight.T
    assert ((half[0].cpu().double() - wanted).abs() < 2**-10 * size).all()


def test_columns_shared_by_programs_are_added_in_their_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Levels and rows of small integers: the sum is exact however the columns are shared."""
    codes, table, _, signs = trellis(40, 700, 3, 10)
    x = torch.randint(-8, 9, (4, 700)).float()
    ones = torch.ones(40)
    levels = reference.trellis_decode(codes, table, 3, 40).double()
    expected = (x * signs).double() @ levels.T
    given = on_card(x, codes, table, ones, signs)
    for programs in (1, 4, 6, 256):
        monkeypatch.setattr(kernel, "PROGRAMS", programs)
        with interpreted():
            found = few_rows.trellis_product(*given[:3], 3, *given[3:], 1)
        assert torch.equal(found.cpu().double(), expected)


def test_many_rows_and_cards_without_the_kernel_decode_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codes, table, scales, signs = trellis(24, 64, 3, 10)
    weight = reference.trellis_weight(codes, table, 3, scales, signs, 16)
    given = on_card(codes, table, scales, signs)

    def fused(*_: object) -> torch.Tensor:
        raise AssertionError

    monkeypatch.setattr(kernel, "level_product", fused)
    x = torch.randn(33, 64)
    with interpreted():
        assert not few_rows.takes(x[:0].to(DEVICE))
        found = few_rows.trellis_product(x.to(DEVICE), *given[:2], 3, *given[2:], 16)
        monkeypatch.setattr(
            backend, "refusal", lambda op, _: "too old" * (op == few_rows.OPERATION)
        )
        few = few_rows.trellis_product(x[:2].to(DEVICE), *given[:2], 3, *given[2:], 16)
    assert torch.allclose(found.cpu(), x @ weight.T, atol=1e-4)
    assert torch.allclose(few.cpu(), x[:2] @ weight.T, atol=1e-4)
    assert not few_rows.takes(torch.randn(2, 64))  # on a processor
