"""Medians, quartiles and the order of a batch's sets, by hand."""

from __future__ import annotations

import math

from vqdq.ui.compare_batch import lost, ranked, spread

ALL = dict.fromkeys(("count", "shapes", "colours", "sizes", "relation", "background"), True)


def picture(flip: float, psnr: float | None, **wrong: bool):
    return {"flip": flip, "psnr": psnr, "latent_cosine": 0.9, "verdict": ALL | wrong}


def one(*variants):
    return {"reference": picture(0, None), "variants": list(variants), "floor": None}


def test_median_and_quartiles():
    assert spread([]) is None
    found = spread([5.0, 1.0, 4.0, 2.0, 3.0])
    assert (found.low, found.middle, found.high) == (2, 3, 4)
    found = spread([30.0, math.inf, math.inf])  # equal pictures
    assert (found.middle, found.high) == (math.inf, math.inf)


def test_a_set_counts_as_its_most_changed_variant():
    sets = [
        one(picture(0.1, 30.0), picture(0.2, 40.0)),
        one(picture(0.3, None), picture(0.0, None)),
        one(picture(0.05, 20.0, shapes=False), None),
        one(None, None),  # nothing drawn yet
    ]
    assert ranked(sets, "flip") == [1, 0, 2]
    assert ranked(sets, "psnr") == [2, 0, 1]
    assert ranked(sets, "lost") == [2, 1, 0]
    assert ranked(sets, "asked") == [0, 1, 2]
    assert lost(sets[2], sets[2]["variants"][0]) == 1
