"""What is remembered is what would be computed, bit for bit; what changed is computed again."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.models import tiny
from vqdq.layers.surgery import candidates
from vqdq.models.memo import exchanged, remembering
from vqdq.models.trajectory import record, replay


def test_every_layer_changed_alone_gives_what_computing_all_gives(tmp_path: Path) -> None:
    pipeline: Any = tiny.pipeline(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    call = record(pipeline, ["a red circle"], steps=1, guidance=3.0).calls[0]
    model: nn.Module = pipeline.unet.eval()
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    names = [layer.name for layer in candidates(model)]
    others: dict[str, nn.Module] = {}
    for name in names:
        others[name] = copy.deepcopy(model.get_submodule(name))
        with torch.no_grad():
            others[name].get_parameter("weight").mul_(1.1)
    found: dict[str, torch.Tensor] = {}
    with torch.no_grad(), remembering(model) as memo:
        base = replay(model, call)
        for name in names:
            memo.change([name])
            with exchanged(model, {name: others[name]}):
                found[name] = replay(model, call)
        assert memo.served > len(names)
        memo.change([])
        assert torch.equal(replay(model, call), base)
    with torch.no_grad():
        assert torch.equal(replay(model, call), call.output)
        for name in names:
            with exchanged(model, {name: others[name]}):
                assert torch.equal(replay(model, call), found[name]), name
            assert not torch.equal(found[name], base), name
    for name, module in model.named_modules():
        assert module.__dict__.keys() == before[name].keys()
        assert "forward" not in module.__dict__


class _Chain(nn.Module):
    """b(a(x)), then a write into what a made."""

    def __init__(self, *, writes: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.writes = writes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.a(x)
        out = self.c(self.b(first))
        if self.writes:
            first.add_(1)
        return out + first


@pytest.mark.parametrize("writes", [False, True])
def test_what_was_written_into_is_computed_again(writes: bool) -> None:
    model, x = _Chain(writes=writes), torch.randn(3, 4)
    with torch.no_grad():
        expected = model(x)
        with remembering(model) as memo:
            model(x)
            memo.change(["c"])
            computed = memo.computed
            for _ in range(2):
                assert torch.equal(model(x), expected)
            # c each time; where a's output was written into, a and b as well
            assert memo.computed - computed == (6 if writes else 2)
            assert memo.served == (0 if writes else 4)


def test_nothing_is_held_beyond_the_limit_and_afterwards() -> None:
    model, x = _Chain(writes=False), torch.randn(3, 4)
    with torch.no_grad():
        expected = model(x)
        with remembering(model, limit_bytes=0) as memo:
            model(x)
            memo.change(["c"])
            assert torch.equal(model(x), expected)
            assert memo.served == 0
    with pytest.raises(RuntimeError, match="stop"), remembering(model):
        raise RuntimeError("stop")
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_exchanged_layers_come_back_after_a_fault() -> None:
    model = _Chain(writes=False)
    own = model.b
    with pytest.raises(RuntimeError), exchanged(model, {"b": nn.Linear(5, 4)}):
        model(torch.zeros(1, 4))
    assert model.b is own
