"""Which prompts a model is calibrated and tuned on: a file's, its own, or the built-in ones."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch

from vqdq.errors import UserError
from vqdq.models.sources import DEMO, demo_folder
from vqdq.places import expanded

_MAX_FILE_BYTES = 50_000_000

# Words of our own that cover people, places, things, light and styles; see `built_in`.
_SUBJECTS = (
    "an old fisherman mending a net", "a girl with a red umbrella", "two chess players in a park",
    "a sleeping orange cat", "a flock of geese", "a horse on a frozen lake", "a vase of tulips",
    "a bowl of ramen with an egg", "a vintage bicycle against a brick wall", "a lighthouse",
    "a crowded night market", "a mountain cabin with smoke from its chimney", "a steam locomotive",
    "a spaceship above a desert", "a robot watering plants", "a portrait of a violinist",
    "a library with spiral stairs", "a glass chess piece", "a street sign that says OPEN",
    "three apples and a knife on a table", "a child building a sand castle", "a dancer mid-leap",
)  # fmt: skip
_STYLES = (
    "", "photograph, soft morning light", "oil painting with thick strokes", "ink drawing",
    "watercolour on rough paper", "35 mm film, shallow depth of field", "flat vector illustration",
    "detailed pixel art", "studio lighting, plain background", "seen from above, long shadows",
    "at night in the rain, neon reflections", "black and white, high contrast",
)  # fmt: skip


def prompts_for(
    model: str | Path, count: int, *, seed: int, prompt_file: str = ""
) -> tuple[str, ...]:
    """Returns `count` prompts for calibration or fine-tuning of a model.

    Raises:
        UserError: the prompt file cannot be read or holds no text.
    """
    if prompt_file:
        return _cycled(read_prompts(Path(prompt_file)), count, seed)
    if _is_demo(model):
        from vqdq.demo import scenes

        generator = torch.Generator().manual_seed(seed)
        return tuple(scenes.caption(scenes.sample_scene(generator, "train")) for _ in range(count))
    return _cycled(built_in(), count, seed)


def built_in() -> tuple[str, ...]:
    """Returns every subject in every style."""
    pairs = itertools.product(_SUBJECTS, _STYLES)
    return tuple(f"{subject}, {style}" if style else subject for subject, style in pairs)


def read_prompts(path: Path) -> tuple[str, ...]:
    """Returns the non-empty lines of a UTF-8 text file.

    Raises:
        UserError: no such file, too large, not UTF-8, or no text in it.
    """
    where = str(path)
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise UserError("is larger than 50 MB.", where=where, remedy="Name a list of prompts.")
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}.", where=where) from error
    except UnicodeDecodeError as error:
        raise UserError("is not UTF-8 text.", where=where, remedy="Save it as UTF-8.") from error
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise UserError("holds no prompt.", where=where, remedy="Write one prompt a line.")
    return found


def _cycled(known: tuple[str, ...], count: int, seed: int) -> tuple[str, ...]:
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed)).tolist()
    return tuple(known[order[index % len(known)]] for index in range(count))


def _is_demo(model: str | Path) -> bool:
    folder = demo_folder()
    return str(model) == DEMO or expanded(model).absolute() == folder.absolute()
