"""Finished captures of a toy model: the real records, in the files that a job leaves."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

from tests.capture import toy
from vqdq import codecs
from vqdq.activations import create
from vqdq.activations.base import Site
from vqdq.capture import Along, record, record_attention, tokenize
from vqdq.capture.weights import weight_records
from vqdq.jobs.requests import InspectRequest
from vqdq.jobs.store import Workspace
from vqdq.layers.matrix import to_matrix
from vqdq.layers.surgery import quantize_, quantize_inputs_
from vqdq.models.following import Following

PROMPT = "red circle on blue"
CONV = "down_blocks.1.resnets.0.conv1"
TEXT = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
INNER = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0"


def request(**changes) -> InspectRequest:
    given = {
        "model": "demo",
        "variants": ("small",),
        "prompt": PROMPT,
        "steps": 3,
        "layer": CONV,
        "step": 1,
    }
    return InspectRequest(**{**given, **changes})


def variant():
    """The toy with two packed layers, one of which rounds its input to 16 levels."""
    model = toy.unet()
    names = (CONV, INNER)
    layers = {name: model.get_submodule(name) for name in names}
    packed = {
        name: codecs.encode(
            to_matrix(layer.weight), "uniform", bits=4, taps=9 if name == CONV else 1
        )
        for name, layer in layers.items()
    }
    quantize_(model, packed)
    quantize_inputs_(model, {INNER: (create("dynamic", bits=4), Site(channels=32))}, {INNER: {}})
    return model


def side(folder: Path, role: str, model, *, seed: int = 0, attention: bool = True) -> dict:
    tokenizer = toy.Tokenizer()
    tokens, negative = tokenize(tokenizer, PROMPT), tokenize(tokenizer, "")
    with (
        record(
            model, detail=(CONV, INNER), detail_steps=(1,), guided=True, keep=(CONV, 1)
        ) as activity,
        record_attention(model, tokens, negative=negative) as scores,
    ):
        toy.draw(model, seed=seed)
    activity.result().save(folder / f"{role}-activations.npz")
    scores.result().save(folder / f"{role}-attention.npz")
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"{role}.png")
    return {
        "variant": role,
        "label": role,
        "image": f"{role}.png",
        "activations": f"{role}-activations.npz",
        "attention": f"{role}-attention.npz" if attention else None,
        "attention_reason": None if attention else "This model reads its prompt in another way.",
        "trajectory": None,
        "trajectory_reason": None,
        "weights": None,
        "seconds": 0.6,
        "plain_seconds": 0.5 if role == "reference" else None,
    }


def following(label: str, error: float) -> Following:
    """Three steps of pictures of 4 × 4 pixels, and predictions that are off by `error`."""
    along = Along(label=label)
    truth = torch.ones(1, 8)
    for step in range(3):
        for free in (False, True):
            found = truth * (1 + error)
            along.add(step, 900.0 - step, truth, found, latents=(truth, found), free=free)
    return Following(
        labels=("reference", label),
        prompts=(PROMPT,),
        steps=3,
        guidance=3.0,
        seed=0,
        timesteps=(900.0, 899.0, 898.0),
        latents=np.zeros((2, 1, 3, 4, 8, 8), np.float32),
        shown=(0, 1, 2),
        previews=np.full((2, 3, 4, 4, 3), 128, np.uint8),
        previewed="decoded",
        errors=(along.result(),),
    )


@cache
def _recorded(variants: tuple[str, ...], attention: bool) -> tuple[dict[str, bytes], str]:
    """Files of a capture and its result as JSON; drawn once a process, as it takes a second."""
    with TemporaryDirectory() as name:
        folder, parts = Path(name), []
        for number, label in enumerate(variants, start=1):
            model = variant()
            part = side(folder, label, model, seed=number, attention=attention)
            part |= {"trajectory": f"{label}-trajectory.npz", "weights": f"{label}-weights.npz"}
            following(label, 0.1 * number).save(folder / part["trajectory"])
            weight_records(toy.unet(), model).save(folder / part["weights"])
            parts.append(part)
        result = {
            "prompt": PROMPT,
            "layer": CONV,
            "step": 1,
            "steps": 3,
            "seconds": 1.5,
            "reference": side(folder, "reference", toy.unet(), attention=attention),
            "variants": parts,
        }
        return {path.name: path.read_bytes() for path in folder.iterdir()}, json.dumps(result)


def done(workspace: Workspace, *, variants: tuple[str, ...] = ("small",), attention=True) -> str:
    """Returns the id of a finished capture; each variant has more error than the one before."""
    workspace.submit(request(variants=variants))
    run = workspace.take()
    assert run is not None
    files, result = _recorded(variants, attention)
    for name, content in files.items():
        (run.folder / name).write_bytes(content)
    workspace.finish(run.id, "done", result=json.loads(result))
    return run.id
