"""Facts of a model from configs and headers, against published figures and closed forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import diffusers
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.models import tiny
from vqdq.errors import UserError
from vqdq.models.footprint import decoding_bytes, drawing_bytes
from vqdq.models.inventory import census, inventory
from vqdq.models.live_memory import peak_live_bytes

SDXL: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD1: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}


@pytest.mark.parametrize(
    ("config", "millions", "share"),
    [(SD1, 859.5, 0.685), (SDXL, 2567.5, 0.130), (VAE, 83.7, 0.974)],
    ids=["SD 1.5", "SDXL", "SD autoencoder"],
)
def test_published_counts(config: dict[str, Any], millions: float, share: float) -> None:
    kind = getattr(diffusers, config["_class_name"])
    with torch.device("meta"):
        found = census(kind.from_config(config))
    assert round(found.parameters / 1e6, 1) == millions
    assert round(found.convolution_share, 3) == share


def test_inventory_agrees_with_the_files(tmp_path: Path) -> None:
    made: Any = tiny.pipeline(tmp_path / "scratch")
    made.save_pretrained(tmp_path / "model")
    found = inventory(tmp_path / "model")
    assert [part.name for part in found.parts] == ["unet", "text_encoder", "vae"]
    for part in found.parts:
        module = cast(nn.Module, getattr(made, part.name))
        assert part.census == census(module), part.name
        assert part.half_bytes == 2 * sum(p.numel() for p in module.parameters())
        folder = tmp_path / "model" / part.name
        assert part.bytes == sum(f.stat().st_size for f in folder.glob("*.safetensors"))
        stored = [t for f in folder.glob("*.safetensors") for t in load_file(f).values()]
        assert sum(part.dtypes.values()) == sum(t.nbytes for t in stored)
    assert found.parts[0].dtype == "float32"
    weights = [
        (layer.weight.numel(), f"{part}.{name}")
        for part in ("unet", "text_encoder", "vae")
        for name, layer in getattr(made, part).named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.Embedding)
    ]
    largest = sorted((count for count, _ in weights), reverse=True)[:8]
    assert [layer.weights for layer in found.largest] == largest
    assert all(layer.bytes == 4 * layer.weights for layer in found.largest)
    assert json.loads(json.dumps(found.to_json()))["parameters"] == found.parameters

    path = next((tmp_path / "model" / "text_encoder").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="its header promises") as caught:
        inventory(tmp_path / "model")
    assert caught.value.where == str(path)


def test_live_bytes_are_those_of_a_pencil() -> None:
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(10, 30), nn.ReLU(), nn.Linear(30, 5))
        rows = torch.empty(4, 10)
    held = [*module.parameters(), rows]
    # The hidden rows and what ReLU makes of them live together: 2 · 4 · 30 floats.
    assert peak_live_bytes(lambda: module(rows), held) == 4 * 2 * 4 * 30
    heads = torch.empty(1, 2, 64, 8, device="meta")
    attention = nn.functional.scaled_dot_product_attention
    # No matrix of scores, which would be 2 · 64 · 64 floats.
    assert peak_live_bytes(lambda: attention(heads, heads, heads), [heads]) == 4 * 2 * 64 * 8


def test_activations_grow_with_the_picture() -> None:
    # Widest maps of the autoencoder: [256, 1024, 1024] in 16 bits are 537 MB; three live at once.
    assert decoding_bytes(VAE, 1024) == pytest.approx(3 * 2 * 256 * 1024**2, rel=0.01)
    assert decoding_bytes({**VAE, "force_upcast": True}, 512) == 2 * decoding_bytes(VAE, 512)
    large = drawing_bytes(SD1, 64, 512)
    # Twelve skips and a level's own maps: [2, 320, 64, 64] in 16 bits is 5.24 MB.
    assert 20 * 5.24e6 < large < 30 * 5.24e6
