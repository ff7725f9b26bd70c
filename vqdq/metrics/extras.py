"""Measures that need networks of others: which can be had here, and how to get those that cannot.

Nothing is downloaded. A measure works when its package is installed and its weights lie on this
computer; without them the page says what is missing, in plain words.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from vqdq.errors import UserError
from vqdq.places import expanded

if TYPE_CHECKING:
    from PIL.Image import Image

_ALEXNET = "alexnet-owt-7be5be79.pth"  # the backbone that LPIPS takes from torchvision
LEAST_PIXELS = 64  # below it the last layer of AlexNet has no positions left


@dataclass(frozen=True, kw_only=True, slots=True)
class Extra:
    """One optional measure.

    Attributes:
        name: key in `Picture.extras`; `title`: for people.
        meaning: what it says, in a sentence; `missing`: what to get, "" when it is ready.
    """

    name: str
    title: str
    meaning: str
    missing: str = ""

    @property
    def ready(self) -> bool:
        """True when it can be measured here."""
        return not self.missing


def available(clip: str = "") -> tuple[Extra, ...]:
    """Returns every optional measure with what it lacks.

    Args:
        clip: folder of a CLIP model of transformers, or "".
    """
    return (
        Extra(
            name="lpips",
            title="LPIPS",
            meaning="How far two pictures are apart in a network fitted to people's judgements.",
            missing=_lpips_missing(),
        ),
        Extra(
            name="clip",
            title="CLIP score",
            meaning="How well a picture fits its prompt.",
            missing=_clip_missing(clip),
        ),
        Extra(
            name="image-reward",
            title="ImageReward",
            meaning="How much people would like a picture for its prompt, by a model of that.",
            missing="It is not connected: its package image-reward needs an older transformers."
            " Score the PNG files with it in an environment of its own.",
        ),
    )


def lpips(first: Image, second: Image) -> float:
    """Returns LPIPS with AlexNet, version 0.1 (arXiv 1801.03924): 0 for equal pictures.

    Raises:
        UserError: package or weights are missing, or the pictures are too small.
    """
    missing = _lpips_missing()
    if missing:
        raise UserError("LPIPS cannot be measured here.", where="lpips", remedy=missing)
    if min(first.size) < LEAST_PIXELS:
        raise UserError(
            f"the picture has {first.size[0]} × {first.size[1]} pixels.",
            where="lpips",
            remedy=f"LPIPS needs {LEAST_PIXELS} × {LEAST_PIXELS}.",
        )
    package = cast(Any, importlib.import_module("lpips"))
    measure = package.LPIPS(net="alex", verbose=False).eval()
    with torch.no_grad():
        return float(measure(_signed(first), _signed(second)))


def _signed(image: Image) -> torch.Tensor:
    """RGB in -1 ... 1, [1, 3, h, w]."""
    values = torch.from_numpy(np.array(image.convert("RGB"))).float()
    return values.permute(2, 0, 1)[None] / 127.5 - 1


def _lpips_missing() -> str:
    if importlib.util.find_spec("lpips") is None:
        return (
            "Install it with `pip install lpips`, and put the weights of torchvision's AlexNet"
            f" ({_ALEXNET}) into {_hub_folder()}."
        )
    if not (_hub_folder() / _ALEXNET).is_file():
        return f"The package is there; put {_ALEXNET} from torchvision into {_hub_folder()}."
    return ""


def _clip_missing(folder: str) -> str:
    place = expanded(folder)
    if folder and (place / "config.json").is_file():
        return ""
    wanted = (
        "Copy a CLIP model of transformers (openai/clip-vit-base-patch32, 605 MB) to this computer"
        " and name its folder."
    )
    return f"{place} holds no model. {wanted}" if folder else wanted


def _hub_folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"
