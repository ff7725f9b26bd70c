"""Optional measures say what they lack; CLIP score against embeddings made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vqdq.errors import UserError
from vqdq.metrics import extras


def test_what_is_missing_is_said_with_its_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    found = {each.name: each for each in extras.available(clip=str(tmp_path))}
    assert [each.ready for each in found.values()] == [False, False, False]
    assert "alexnet" in found["lpips"].missing
    assert str(tmp_path) in found["clip"].missing
    (tmp_path / "config.json").write_text("{}")
    assert extras.available(clip=str(tmp_path))[1].ready
    picture = Image.fromarray(np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(UserError, match="LPIPS cannot be measured") as caught:
        extras.lpips(picture, picture)
    assert caught.value.remedy == found["lpips"].missing


def test_clip_score_is_the_cosine_of_the_embeddings(tmp_path):
    from vqdq.models.clip_score import ClipScore

    with pytest.raises(UserError, match="no CLIP model"):
        ClipScore(tmp_path)

    class Answer:
        image_embeds = torch.tensor([[0.6, 0.8]])
        text_embeds = torch.tensor([[1.0, 0.0]])

    scorer = ClipScore.__new__(ClipScore)
    scorer._processor = lambda **given: {"text": given["text"]}
    scorer._model = lambda **_: Answer
    picture = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    assert scorer.score(picture, "a") == pytest.approx(60)
    Answer.text_embeds = torch.tensor([[-1.0, 0.0]])
    assert scorer.score(picture, "a") == 0
