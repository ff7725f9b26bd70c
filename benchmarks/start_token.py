"""Attention scores whose start token takes nearly everything: what rounding leaves of the words."""

from __future__ import annotations

import math

import torch

from benchmarks.timing import table
from vqdq.activations.scores import Scheme, fake_scores, score_levels, spread

HEADS, QUERIES, WORDS, WIDTH = 8, 256, 76, 40
SHARES = (0.0, 0.5, 0.9, 0.97)
BITS = (8, 6, 4)
METHODS: tuple[tuple[str, Scheme, bool], ...] = (
    ("linear", "linear", False),
    ("linear, start apart", "linear", True),
    ("log 2", "log2", False),
    ("log 2, start apart", "log2", True),
    ("log, fitted base", "log", False),
    ("log, fitted base, start apart", "log", True),
)


def run() -> str:
    """Returns the table as Markdown: what the words bring to the output, signal over error."""
    generator = torch.Generator().manual_seed(0)
    words = (2 * torch.randn(HEADS, QUERIES, WORDS, generator=generator)).softmax(-1)
    values = torch.randn(HEADS, WORDS, WIDTH, generator=generator)
    rows: list[list[str]] = []
    for share in SHARES:
        start = torch.full((HEADS, QUERIES, 1), share)
        scores = torch.cat((start, (1 - share) * words), -1)
        for title, scheme, apart in METHODS:
            row = [f"{100 * share:.0f} %", title]
            for bits in BITS:
                levels = score_levels(spread(scores, start_apart=apart), scheme, bits)
                found = fake_scores(scores, levels, start_apart=apart)[..., 1:]
                true = scores[..., 1:] @ values
                lost = (found @ values - true).square().sum() / true.square().sum()
                row.append(f"{-10 * math.log10(float(lost)):.1f}")
            rows.append(row)
    head = ["start token's share", "method", *(f"{bits} bits, dB" for bits in BITS)]
    return table(head, rows)
