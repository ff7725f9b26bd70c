"""An inspection of transformers: joint attention, guidance that is embedded, a learnt variance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.models import families
from vqdq.jobs import inspect
from vqdq.jobs.inspected import opened
from vqdq.jobs.requests import InspectRequest
from vqdq.jobs.warm import Warm
from vqdq.views import attention_mass, catalogue, style

CHANGED = {
    "pixart_alpha": "transformer_blocks.0.attn2.to_q",
    "stable_diffusion_3": "transformer_blocks.0.attn.to_q",
    "flux_dev": "single_transformer_blocks.0.proj_mlp",
    "flux_schnell": "transformer_blocks.0.attn.to_q",
}


class Told:
    """A family's pipeline that takes a prompt for its embeddings, and draws a grey picture."""

    def __init__(self, pipe: Any, call: dict[str, Any]) -> None:
        self._pipe, self._call = pipe, call

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_pipe"], name)

    @property
    def components(self) -> dict[str, Any]:
        """Without those that a prompt would need: this one does not read it."""
        return {name: part for name, part in self._pipe.components.items() if part is not None}

    def __call__(self, *, prompt: str, output_type: str, **options: Any) -> Any:
        del prompt
        done = self._pipe(**(self._call | options))
        if output_type == "pil":
            done.images = [Image.new("RGB", (16, 16), "grey")]
        return done


@dataclass
class Loaded:
    """Pipelines by name, as the warm ones are asked for."""

    pipelines: dict[str, Told]

    def get(self, name: str, *, report: Any = None) -> Warm:
        del report
        return Warm(
            reference=name, label=name, pipeline=self.pipelines[name], load_seconds=0.0,
            tensor_bytes=0, facts={}, file_bytes=0, is_demo=False,
        )  # fmt: skip


@pytest.mark.parametrize("family", CHANGED)
def test_a_weight_that_is_a_tenth_too_large_is_found(family, tmp_path):
    """Its own output is off by a tenth, 20 dB; nothing before it is off at all."""
    made: dict[str, Told] = {}
    for name in ("whole", "off"):
        pipe, call = families.build(family)
        pipe.transformer.eval().requires_grad_(requires_grad=False)
        made[name] = Told(pipe, call)
    layer = made["off"].transformer.get_submodule(CHANGED[family])
    for tensor in layer.parameters():
        tensor.mul_(1.1)
    request = InspectRequest(
        model="whole", variants=("off",), prompt="a red circle", steps=2, guidance=3.0,
        layer=CHANGED[family], step=1,
    )  # fmt: skip
    result = inspect.execute(request, tmp_path, cache=Loaded(made))
    models = opened(tmp_path, result)
    record = models[1].activity
    doubled = family in ("pixart_alpha", "stable_diffusion_3")
    assert record.halves == (("uncond", "cond") if doubled else ("all",))
    found = record.scalars.paired_sqnr_db
    row = record.layers.index(CHANGED[family])
    np.testing.assert_allclose(found[:, row], 20.0, atol=1e-3)
    assert np.isinf(found[:, :row]).all()
    assert np.isfinite(found[:, -1]).all()
    assert list(models[1].weights) == [CHANGED[family]]
    assert models[1].weights[CHANGED[family]].row_error_db == pytest.approx(-20.0, abs=1e-3)
    assert result["variants"][0]["trajectory_reason"] is None
    errors = models[1].errors
    assert errors.forced_sqnr_db[0] == pytest.approx(errors.free_sqnr_db[0], abs=1e-2)
    assert models[1].previews.size == 0  # without an autoencoder
    attention = models[1].attention
    assert attention.halves == record.halves
    assert attention.prompt.words == ()  # embeddings have no words
    mass = float(attention.mass.sum(axis=-1).max())  # where it is joint, the picture has a part
    assert mass == pytest.approx(1.0, abs=1e-4) if family == "pixart_alpha" else 0 < mass < 1
    shares = attention_mass.role_mass(attention)
    assert ("picture" in shares) == (family != "pixart_alpha")
    np.testing.assert_allclose(sum(shares.values()), 1, atol=1e-3)
    names = catalogue.figures(models, style.LIGHT, layers=result["layers"], step=1)
    for name in ("attention/scores", "attention/mass-by-step-variant-1", "trajectory"):
        assert names[name]() is not None
    assert not any(name.startswith("attention/word") for name in names)


def test_a_pipeline_that_adds_to_its_predictions_is_not_followed(tmp_path):
    made: dict[str, Told] = {}
    for name in ("whole", "off"):
        pipe, call = families.build("stable_diffusion_3")
        made[name] = Told(_Rescaled(pipe), call)
    request = InspectRequest(
        model="whole", variants=("off",), prompt="a", steps=2, guidance=3.0, layer=""
    )
    result = inspect.execute(request, tmp_path, cache=Loaded(made))
    assert "more to a prediction" in str(result["variants"][0]["trajectory_reason"])
    assert opened(tmp_path, result)[1].errors is None


class _Rescaled:
    """A pipeline whose sampler is given twice the prediction."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_pipe"], name)

    def __call__(self, **call: Any) -> Any:
        scheduler = self._pipe.scheduler
        noted = scheduler.step
        scheduler.step = lambda e, *a, **k: noted(2 * e, *a, **k)
        try:
            return self._pipe(**call)
        finally:
            scheduler.step = noted
