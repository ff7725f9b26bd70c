"""Packed layers on a card: decoded there, and computed there in integers where they are on a
processor. Without a card, Triton's interpreter stands for it.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.layers.test_execution import Known, quantized, some_grid
from vqdq import codecs
from vqdq.activations.base import Grid, ranged
from vqdq.kernels import backend
from vqdq.layers import execution
from vqdq.layers.matrix import weight_matrix
from vqdq.layers.quantized import QuantizedConv2d, QuantizedLinear, pack

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def packed(layer: nn.Linear | nn.Conv2d, codec: str, **settings: object) -> nn.Module:
    matrix, taps = weight_matrix(layer)
    params = codecs.get(codec).settings.from_json(settings, where=codec)
    return pack(layer, codecs.create(codec, params).encode(matrix, taps=taps))


@pytest.mark.parametrize(
    ("codec", "settings"),
    [
        ("trellis", {"bits": 3, "state_bits": 8}),
        ("trellis", {"bits": 4, "state_bits": 10, "output_rotation": 64}),
        ("additive", {"num_codebooks": 2, "codeword_bits": 4}),
        ("uniform", {"bits": 4}),
        ("nf4", {"double_quant": True}),
        ("int8", {}),
    ],
)
def test_a_packed_layer_decodes_on_the_card_to_the_same_weight(
    codec: str, settings: dict[str, object]
) -> None:
    torch.manual_seed(1)
    for dense in (nn.Linear(32, 64), nn.Conv2d(16, 64, 3, padding=1)):
        layer = packed(dense, codec, **settings)
        assert isinstance(layer, QuantizedLinear | QuantizedConv2d)
        expected, half = layer.dense(torch.float32), layer.dense(torch.float16)
        there = copy.deepcopy(layer).to(DEVICE)
        there.release()
        with backend.interpreted():
            assert torch.equal(there.dense(torch.float32).cpu(), expected)
            assert torch.equal(there.dense(torch.float16).cpu(), half)


def test_few_rows_on_the_card_are_multiplied_with_the_weight_as_it_decodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the weight is not kept, and nothing else wants it."""
    from vqdq.kernels.triton import few_rows

    calls: list[int] = []
    product = few_rows.level_product

    def counted(rows: torch.Tensor, *args: object) -> torch.Tensor:
        calls.append(len(rows))
        return product(rows, *args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(few_rows, "level_product", counted)
    torch.manual_seed(2)
    dense, x = nn.Linear(64, 64), torch.randn(2, 20, 64)
    plain, turned = (
        packed(dense, "trellis", bits=3, state_bits=8, output_rotation=block).requires_grad_(False)
        for block in (0, 64)
    )
    for layer in (plain, turned):
        assert isinstance(layer, QuantizedLinear)
        there = copy.deepcopy(layer).to(DEVICE)
        for residency, few, grad, expected in (
            ("streaming", 16, False, [32]),
            ("streaming", 20, False, []),  # 40 rows
            ("resident", 16, False, []),
            ("streaming", 1, True, []),
        ):
            calls.clear()
            there.residency = residency  # pyright: ignore[reportAttributeAccessIssue]
            rows = x[:, :few].to(DEVICE).requires_grad_(grad)
            with backend.interpreted():
                found = there(rows)
            assert found.shape == (2, few, 64)
            assert torch.allclose(found.cpu(), layer(x[:, :few]), atol=1e-4)
            assert calls == (expected if layer is plain else [])


def both(
    layer: QuantizedLinear | QuantizedConv2d, inputs: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Returns what a layer gives on the processor and on the card."""
    assert layer.input is not None
    here = layer(inputs)
    there = copy.deepcopy(layer).to(DEVICE)
    with backend.interpreted():
        assert execution.how(there, there.input).kind == "integer"  # pyright: ignore[reportArgumentType]
        return here, there(inputs.to(DEVICE)).cpu()


@pytest.mark.parametrize("axis", ["tensor", "sample", "row", "rows", "group"])
def test_integers_on_the_card_are_those_of_the_processor(axis: str) -> None:
    generator = torch.Generator().manual_seed(5)
    torch.manual_seed(5)
    for dense, shape in (
        (nn.Linear(48, 24), (2, 6, 48)),
        (nn.Conv2d(16, 24, 3, padding=1, stride=2), (2, 16, 4, 5)),
    ):
        sizes = (2, 20, 16) if len(shape) == 4 else (2, 6, 48)
        grid = some_grid(axis, sizes, 8, generator, zeros=True)
        layer = quantized(dense, Known(grid))
        here, there = both(layer, torch.randn(shape, generator=generator))
        assert (here - there).abs().max() < 3e-6 * here.abs().max()


def test_what_is_not_finite_becomes_nan_on_the_card() -> None:
    """An error would stop the processor at every layer."""
    scale, zero = ranged(torch.tensor(-2.0), torch.tensor(2.0), 8)
    layer = quantized(nn.Linear(16, 8), Known(Grid(bits=8, axis="tensor", scale=scale, zero=zero)))
    inputs = torch.ones(1, 3, 16, device=DEVICE)
    inputs[0, 1, 1] = torch.inf
    there = layer.to(DEVICE)
    with backend.interpreted():
        assert there(inputs).isnan().all()


def test_what_no_kernel_of_a_card_computes_is_simulated_and_says_why() -> None:
    scale, zero = ranged(torch.tensor(-2.0), torch.tensor(2.0), 8)
    known = Known(Grid(bits=8, axis="tensor", scale=scale, zero=zero))
    with backend.interpreted():
        for layer, words in (
            (nn.Conv2d(16, 16, 3, groups=2), "grouped"),
            (nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular"), "circular"),
        ):
            there = quantized(layer, known)
            found = execution.how(there, there.input)  # pyright: ignore[reportArgumentType]
            assert found.kind == "simulated"
            assert words in found.reason
