"""A small UNet with random weights and a word-level tokenizer, both quick enough for every test."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel

TOKENS = 8
TEXT_WIDTH = 24
LATENT = 8


def unet() -> UNet2DConditionModel:
    """Returns a two-level UNet with self- and cross-attention, the same one at every call."""
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=LATENT,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=(2, 4),  # diffusers reads this as the number of heads
        norm_num_groups=8,
    )
    return model.eval().requires_grad_(requires_grad=False)


def inputs(seed: int = 0, samples: int = 2) -> dict[str, torch.Tensor]:
    """Returns noise and text states of a batch, by the names of the UNet's arguments."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "sample": torch.randn(samples, 4, LATENT, LATENT, generator=generator),
        "encoder_hidden_states": torch.randn(samples, TOKENS, TEXT_WIDTH, generator=generator),
    }


def draw(model: UNet2DConditionModel, *, seed: int = 0, samples: int = 2) -> torch.Tensor:
    """Returns the latent after three Euler-like steps."""
    given = inputs(seed, samples)
    x = given["sample"]
    with torch.no_grad():
        for time in (900.0, 500.0, 100.0):
            x = x - 0.3 * model(x, time, given["encoder_hidden_states"]).sample
    return x


class Tokenizer:
    """Splits at spaces; words longer than five letters become two tokens."""

    model_max_length = TOKENS
    bos_token_id = 0
    eos_token_id = 1

    def __init__(self) -> None:
        self.pieces = ["<|startoftext|>", "<|endoftext|>"]

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        ids = [0]
        for word in text.split():
            halves = [word[:5], word[5:] + "</w>"] if len(word) > 5 else [word + "</w>"]
            for piece in halves:
                if piece not in self.pieces:
                    self.pieces.append(piece)
                ids.append(self.pieces.index(piece))
        ids = ids[: options["max_length"] - 1]
        return {"input_ids": ids + [1] * (options["max_length"] - len(ids))}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.pieces[at] for at in ids]

    def decode(self, ids: list[int]) -> str:
        return "".join(self.pieces[at] for at in ids).replace("</w>", " ")
