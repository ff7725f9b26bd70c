"""Swap and restore leave the model as it was: the same objects, the same bits, no hooks."""

from __future__ import annotations

from collections.abc import Generator

import pytest
import torch
from torch import nn

from tests.layers.toy import Toy, registered
from vqdq.codecs import encode
from vqdq.codecs.base import Packed, WeightShape
from vqdq.errors import UserError
from vqdq.layers.matrix import weight_matrix
from vqdq.layers.surgery import candidates, quantize_, quantized, restore_


@pytest.fixture(autouse=True)
def _toy() -> Generator[None, None, None]:
    with registered():
        yield


class Net(nn.Module):
    """Registers its second layer first, as the UNets do with their up blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.ModuleList([nn.Linear(6, 2), nn.Linear(6, 2)])
        self.early = nn.Conv2d(4, 6, 3, padding=1)
        self.norm = nn.GroupNorm(2, 6)
        self.idle = nn.Linear(3, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = self.norm(self.early(x)).mean((2, 3))
        return self.late[1](pooled) + self.late[0](pooled)


def pack_all(model: nn.Module) -> dict[str, Packed]:
    result: dict[str, Packed] = {}
    for layer in candidates(model):
        matrix, taps = weight_matrix(model.get_submodule(layer.name))
        result[layer.name] = encode(matrix, Toy.name, taps=taps)
    return result


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_candidates_with_shapes() -> None:
    layers = candidates(Net().to("meta"))
    assert [layer.name for layer in layers] == ["late.0", "late.1", "early", "idle"]
    assert layers[2].kind == "conv2d"
    assert layers[2].shape == WeightShape(out_features=6, in_features=36, taps=9)
    assert layers[2].shape.channels == 4


def test_candidates_in_order_of_execution() -> None:
    model = Net().to("meta")
    layers = candidates(model, lambda: model(torch.empty(1, 4, 5, 5, device="meta")))
    assert [layer.name for layer in layers] == ["early", "late.1", "late.0", "idle"]
    assert hooks(model) == 0

    def fail() -> None:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        candidates(model, fail)
    assert hooks(model) == 0


def test_restore_is_bitwise() -> None:
    model = Net()
    modules = dict(model.named_modules())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = torch.randn(2, 4, 5, 5)
    expected = model(x)
    originals = quantize_(model, pack_all(model))
    assert not torch.equal(model(x), expected)
    assert "early.weight" not in model.state_dict()
    restore_(model, originals)
    assert dict(model.named_modules()) == modules  # the same objects
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(model(x), expected)
    assert hooks(model) == 0


def test_restored_after_an_exception() -> None:
    model = Net()
    before = list(model.state_dict())
    with pytest.raises(ArithmeticError), quantized(model, pack_all(model)):
        raise ArithmeticError
    assert list(model.state_dict()) == before


def test_training_flag_follows() -> None:
    model = Net().eval()
    with quantized(model, pack_all(model)):
        assert not any(module.training for module in model.modules())


def test_a_fault_leaves_the_model_alone() -> None:
    model = Net()
    packs = pack_all(model)
    keys = list(model.state_dict())
    with pytest.raises(UserError, match='Did you mean "early"') as caught:
        quantize_(model, {"late.0": packs["late.0"], "earli": packs["early"]})
    assert caught.value.where == "earli"
    with pytest.raises(UserError) as caught:
        quantize_(model, {"late.0": packs["late.0"], "early": packs["idle"]})
    assert caught.value.where == "early"
    with pytest.raises(UserError, match="no weight"):
        quantize_(model, {"norm": packs["idle"]})
    assert list(model.state_dict()) == keys
