"""A model compressed with 8-bit float activations: on the disk and in memory, and its plan."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vqdq
from tests.models import tiny
from vqdq.errors import UserError
from vqdq.jobs import compress
from vqdq.jobs.inputs import in_words
from vqdq.jobs.requests import CompressRequest
from vqdq.jobs.warm import WarmPipelines
from vqdq.layers.execution import executions
from vqdq.layers.surgery import set_activations_
from vqdq.models import modes
from vqdq.models.compressor import plan
from vqdq.models.modes import mode_estimates
from vqdq.recipe import Recipe

RECIPE = Recipe.from_json(
    {
        "name": "floats",
        "rules": [
            {"pattern": "conv_in", "method": None},
            {
                "pattern": "*",
                "method": "uniform",
                "params": {"bits": 6},
                "activation": {"method": "fp8"},
            },
        ],
    }
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("floats")
    tiny.folder(place / "tiny")
    return place


def test_compressed_opened_and_drawn_bit_for_bit_and_said_to_be_simulated(folder: Path) -> None:
    asked = CompressRequest(
        model=str(folder / "tiny"), recipe=RECIPE, name="fp8", output=str(folder / "made")
    )
    made = compress.execute(asked, cache=WarmPipelines())
    assert made["predicted_bytes"] == made["measured_bytes"]
    assert made["activations"] == in_words(RECIPE) == "activations 8 bits (fp8)"
    found, ready = made["arithmetic"], plan(folder / "tiny", RECIPE)
    assert found is not None
    assert (found["integer"], found.get("fp8"), found["sixteen_bit"]) == (0, 0, 1)
    assert found["simulated"] == found["rounded_weights"] == len(ready.activated) > 20
    assert {row["activation_bits"] for row in made["layers"] if row["activation"]} == {8}
    opened = vqdq.load(folder / "made")
    pictures = [tiny.draw(opened), tiny.draw(vqdq.compress(vqdq.load(folder / "tiny"), RECIPE))]
    assert torch.equal(pictures[0], pictures[1])
    assert {told.kind for told in executions(opened.unet).values()} == {"simulated"}
    assert modes.held_bytes(opened) == mode_estimates(ready, dtype=torch.float32)[0].held_bytes
    modes.set_mode_(opened, "streaming")
    assert torch.equal(tiny.draw(opened), pictures[0])
    set_activations_(opened.unet, enabled=False)
    assert not torch.equal(tiny.draw(opened), pictures[0])


def test_the_mode_of_integers_is_refused_by_name(folder: Path) -> None:
    small = vqdq.compress(vqdq.load(folder / "tiny"), RECIPE)
    with pytest.raises(UserError, match="8-bit floats are multiplied on NVIDIA cards") as caught:
        modes.set_mode_(small, "integer")
    assert "such as resident" in (caught.value.remedy or "")
    ready = plan(folder / "tiny", RECIPE)
    assert "not on a processor" in mode_estimates(ready)[3].refusal
    if not torch.cuda.is_available():
        assert "known only" in mode_estimates(ready, device="cuda")[3].refusal
