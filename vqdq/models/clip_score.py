"""CLIP score: how well a picture fits its prompt, by a CLIP model that lies on this computer.

Hessel et al. 2021 (arXiv 2104.08718, section 3) without their rescaling by 2.5: 100 times the
cosine of the two embeddings, at least 0, as most papers report it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from vqdq.errors import UserError
from vqdq.places import expanded

if TYPE_CHECKING:
    from PIL.Image import Image


class ClipScore:
    """A loaded CLIP.

    Args:
        folder: of `transformers`: config, weights, tokenizer and image processor.

    Raises:
        UserError: the folder is not such a model.
    """

    def __init__(self, folder: str | Path) -> None:
        from transformers import CLIPModel, CLIPProcessor

        place = expanded(folder)
        remedy = "Choose a folder saved from transformers, as clip-vit-base-patch32 is."
        if not (place / "config.json").is_file():
            raise UserError("there is no CLIP model.", where=str(place), remedy=remedy)
        try:
            model = CLIPModel.from_pretrained(place, local_files_only=True)
            processor = CLIPProcessor.from_pretrained(place, local_files_only=True)
        except (OSError, ValueError) as error:
            what = f"is no CLIP model that can be opened ({error})."
            raise UserError(what, where=str(place), remedy=remedy) from error
        self._model = cast(Any, model).eval()
        self._processor = cast(Any, processor)

    def score(self, image: Image, prompt: str) -> float:
        """Returns 100 · max(0, cosine) of picture and prompt; a long prompt is cut as CLIP does."""
        inputs = self._processor(
            text=[prompt], images=[image.convert("RGB")], return_tensors="pt", truncation=True
        )
        with torch.no_grad():
            found = self._model(**inputs)
        return float(100 * (found.image_embeds * found.text_embeds).sum().clamp(min=0))
