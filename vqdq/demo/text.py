"""The text encoder: a small CLIP text model that is trained alone, before the denoiser, and then
frozen.

Trained together with the denoiser it gets its signal through weak cross-attention and learns shapes
and order very late; trained alone it knows every attribute after half a minute. Two throw-away
teachers look at its output: linear heads that name each attribute, and a cross-attention decoder
that draws the layout of the scene, so that the words say what and where in a way attention can
read.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from vqdq.demo import pieces, scenes
from vqdq.demo.parallel import CPU
from vqdq.demo.tokenizer import MAX_TOKENS, build_tokenizer

WIDTH = 128
BATCH = 96
_CELLS = 8  # the layout is _CELLS x _CELLS
_PARAPHRASED = 0.3  # share of training captions with synonyms


def new_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained text model, three layers of 128, weights from torch's global generator."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=_id(tokenizer.bos_token_id),
            eos_token_id=_id(tokenizer.eos_token_id),
            pad_token_id=_id(tokenizer.pad_token_id),
        )
    )


def _id(token: object) -> int:
    """A special token's id, which transformers also allows to be many or absent."""
    assert isinstance(token, int)
    return token


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids [n, MAX_TOKENS] as the pipeline makes them."""
    encoded = tokenizer(
        captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    )
    return encoded["input_ids"]


def labels(scene: scenes.Scene) -> list[int]:
    """The class of each attribute, in the order of `class_counts`; 0 where there is no such
    thing."""
    named = [
        len(scene.objects) - 1,
        scenes.PATTERNS.index(scene.pattern),
        list(scenes.BACKGROUND_COLOURS).index(scene.background),
        list(scenes.RELATIONS).index(scene.relation) + 1 if scene.relation else 0,
    ]
    for index in range(2):
        if index < len(scene.objects):
            item = scene.objects[index]
            named.append(list(scenes.SIZES).index(item.size) + 1)
            named.append(list(scenes.OBJECT_COLOURS).index(item.colour) + 1)
            named.append(scenes.SHAPES.index(item.shape) + 1)
        else:
            named += [0, 0, 0]
    return named


def class_counts() -> list[int]:
    """How many classes each attribute has."""
    item = [len(scenes.SIZES) + 1, len(scenes.OBJECT_COLOURS) + 1, len(scenes.SHAPES) + 1]
    whole = [2, len(scenes.PATTERNS), len(scenes.BACKGROUND_COLOURS), len(scenes.RELATIONS) + 1]
    return whole + item + item


def layout(scene: scenes.Scene) -> Tensor:
    """Which object covers each cell [_CELLS, _CELLS] at its nominal place: 0 none, 1 first, 2
    second."""
    axis = (torch.arange(_CELLS) + 0.5) * (128 / _CELLS)
    cells = torch.zeros(_CELLS, _CELLS, dtype=torch.long)
    for index, (x, y, radius) in enumerate(scenes.nominal_places(scene)):
        near = (axis[None, :] - x).abs().maximum((axis[:, None] - y).abs()) < radius
        cells[near] = index + 1
    return cells


class Teacher(nn.Module):
    """Reads attributes and layout out of the encoder's states; thrown away after training."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.Linear(2 * WIDTH, sum(class_counts()))
        self.places = nn.Parameter(torch.randn(_CELLS**2, WIDTH) * 0.1)
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.norm = nn.LayerNorm(WIDTH)
        self.mix = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )
        self.cell = nn.Linear(WIDTH, sum(class_counts()[4:7]))

    def forward(self, states: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [n, classes] of attributes and [n, cells, classes] of the layout.

        Args:
            states: the encoder's output [n, tokens, width].
            ends: index [n] of each caption's first end token.
        """
        rows = torch.arange(len(states), device=states.device)
        named = self.heads(torch.cat([states[rows, ends], states[:, -1]], dim=1))
        places = self.places.expand(len(states), -1, -1)
        seen = self.norm(places + self.attention(places, states, states, need_weights=False)[0])
        return named, self.cell(seen + self.mix(seen))


def train(
    folder: Path, *, seconds: float, seed: int, batch: int = BATCH, device: torch.device = CPU
) -> tuple[CLIPTokenizer, CLIPTextModel]:
    """The tokenizer and the frozen text encoder, on the processor; from `folder` where it was
    trained before."""
    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    encoder = new_encoder(tokenizer)
    saved = folder / "encoder.pt"
    if saved.exists():
        encoder.load_state_dict(torch.load(saved, weights_only=True))
        return tokenizer, encoder.eval().requires_grad_(requires_grad=False)
    teacher, generator = Teacher().to(device), torch.Generator().manual_seed(seed)
    encoder.to(device)  # pyright: ignore[reportArgumentType]
    parameters = [*encoder.parameters(), *teacher.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    start, step, right = time.monotonic(), 0, 0.0
    folder.mkdir(parents=True, exist_ok=True)
    while (spent := time.monotonic() - start) < seconds:
        rate = min(1.0, (step + 1) / 50) * min(1.0, 2.5 * (1 - spent / seconds) + 0.02)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * rate
        loss, share = _loss(tokenizer, encoder, teacher, generator, batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step, right = step + 1, 0.98 * right + 0.02 * share
        if step % 50 == 0:
            row = {"step": step, "seconds": round(spent, 1), "loss": round(float(loss.detach()), 4)}
            print(json.dumps(row | {"all_right": round(right, 4)}), flush=True)
    pieces.save(folder, {}, {"steps": step, "seconds": spent, "progress": 1.0})
    encoder.to(CPU)  # pyright: ignore[reportArgumentType]
    torch.save(encoder.state_dict(), saved)
    return tokenizer, encoder.eval().requires_grad_(requires_grad=False)


def _loss(
    tokenizer: CLIPTokenizer,
    encoder: CLIPTextModel,
    teacher: Teacher,
    generator: torch.Generator,
    batch: int,
) -> tuple[Tensor, float]:
    """The loss of a fresh batch, and the share of captions with every attribute named right."""
    drawn = [scenes.sample_scene(generator) for _ in range(batch)]
    rephrase = torch.rand(batch, generator=generator) < _PARAPHRASED
    captions = [
        scenes.paraphrase(scene, generator) if other else scenes.caption(scene)
        for scene, other in zip(drawn, rephrase.tolist(), strict=True)
    ]
    device = teacher.places.device
    ids = tokenize(tokenizer, captions).to(device)
    states = encoder(ids).last_hidden_state
    ends = (ids == _id(tokenizer.eos_token_id)).int().argmax(1)
    named, cells = teacher(states, ends)
    wanted = torch.tensor([labels(scene) for scene in drawn]).to(device)  # [batch, attributes]
    loss = torch.zeros((), device=device)
    right = torch.ones(batch, dtype=torch.bool, device=device)
    for index, logits in enumerate(named.split(class_counts(), dim=1)):
        loss = loss + functional.cross_entropy(logits, wanted[:, index])
        right &= logits.argmax(1) == wanted[:, index]
    covered = (
        torch.stack([layout(scene) for scene in drawn]).flatten(1).to(device)
    )  # [batch, cells]
    # Columns 4-6 and 7-9 hold size, colour and shape of the two objects; class 0 is no object.
    items = torch.stack([torch.zeros_like(wanted[:, :3]), wanted[:, 4:7], wanted[:, 7:10]], 1)
    for index, logits in enumerate(cells.split(class_counts()[4:7], dim=2)):
        target = items[:, :, index].gather(1, covered)
        loss = loss + functional.cross_entropy(logits.flatten(0, 1), target.flatten())
    return loss, float(right.float().mean())
