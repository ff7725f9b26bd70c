"""Levels of attention scores against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from vqdq.activations.attention import AttentionParams
from vqdq.activations.scores import (
    Scheme,
    ScoreLevels,
    Spread,
    fake_scores,
    merged,
    score_levels,
    spread,
)
from vqdq.errors import UserError

BITS = (4, 5, 6, 7, 8)
SCHEMES: tuple[Scheme, ...] = ("log", "log2", "linear")


def _scores(*shape: int, sharp: float = 2.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(sharp * torch.randn(*shape, generator=generator), -1)


def _fake(scores: torch.Tensor, scheme: Scheme, bits: int, *, start: bool = False) -> torch.Tensor:
    """Each sample of [batch, heads, queries, keys] by itself."""
    found = [score_levels(spread(each, start_apart=start), scheme, bits) for each in scores]
    pairs = zip(scores, found, strict=True)
    return torch.stack([fake_scores(each, levels, start_apart=start) for each, levels in pairs])


@pytest.mark.parametrize("bits", BITS)
def test_the_relative_error_of_the_adaptive_base_is_half_a_step(bits: int) -> None:
    for seed in range(3):
        scores = _scores(2, 50, 77, seed=seed)
        levels = score_levels(spread(scores, start_apart=False), "log", bits)
        known = fake_scores(scores, levels, start_apart=False)
        assert levels.base == pytest.approx(2 ** (levels.octaves / (2**bits - 2)))
        inside = scores >= levels.peak * 2**-levels.octaves
        error = float((known / scores - 1)[inside].abs().max())
        bound = levels.base**0.5 - 1
        assert 0.9 * bound < error <= bound + 1e-5


@pytest.mark.parametrize("bits", BITS)
def test_base_two_rounds_to_the_nearest_power(bits: int) -> None:
    scores = _scores(2, 2, 40, 64)
    known = _fake(scores, "log2", bits)
    for sample in range(2):
        peak = float(scores[sample].max())
        for value, found in zip(
            scores[sample].flatten()[:500].tolist(),
            known[sample].flatten()[:500].tolist(),
            strict=True,
        ):
            code = min(max(round(-math.log2(value / peak)), 0), 2**bits - 1)
            assert found == pytest.approx(peak * 2.0**-code, rel=1e-6)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_levels_come_back_exactly(scheme: Scheme, bits: int) -> None:
    highest = 2**bits - 1
    levels = ScoreLevels(scheme=scheme, bits=bits, peak=0.75, octaves=11.0)
    # Below 2^-126 float32 has no whole precision left.
    last = min(highest, 120) if scheme == "log2" else highest
    codes = torch.arange(last + 1, dtype=torch.uint8)
    values = levels.decode(codes)
    assert torch.equal(levels.encode(values), codes)
    q = codes.double()
    expected = {
        "log2": 0.75 * 2**-q,
        "log": torch.where(q == highest, 0, 0.75 * 2 ** (-11 * q / (highest - 1))),
        "linear": 0.75 * q / highest,
    }[scheme]
    torch.testing.assert_close(values.double(), expected, rtol=1e-6, atol=0)
    if scheme == "log2":
        assert torch.equal(values, expected.float())


def test_linear_levels_are_off_by_half_a_step_at_most() -> None:
    scores = _scores(2, 3, 30, 20)
    for bits in BITS:
        error = (_fake(scores, "linear", bits) - scores).abs().amax((1, 2, 3))
        assert bool((error <= scores.amax((1, 2, 3)) / (2**bits - 1) / 2 + 1e-7).all())


def test_a_score_of_nothing_stays_nothing() -> None:
    scores = _scores(1, 2, 8, 10)
    scores[..., 6:] = 0  # as a mask leaves them
    assert float(_fake(scores, "log", 4)[..., 6:].max()) == 0
    assert float(_fake(scores, "linear", 4)[..., 6:].max()) == 0
    published = _fake(scores, "log2", 4)[..., 6:]
    torch.testing.assert_close(published, torch.full_like(published, scores.max() * 2**-15))


@pytest.mark.parametrize("bits", BITS)
def test_tiny_scores_vanish_and_a_row_loses_less_than_promised(bits: int) -> None:
    keys = 4096
    scores = torch.full((1, 1, 2, keys), 0.01 / keys)
    scores[..., 0] = 0.99
    scores[:, :, 1] = 1 / keys
    known = _fake(scores, "log", bits)
    lost = (scores - known).clamp_min(0).sum(-1)[0, 0]
    half_step = 1 - score_levels(spread(scores[0], start_apart=False), "log", bits).base ** -0.5
    assert float(lost.max()) <= 2 ** -(2.5 + 0.75 * (bits - 4)) + half_step
    # Base 2 at 4 bits lifts 4095 scores of 2^-19 to 2^-15: an eighth of the row, out of nothing.
    if bits == 4:
        assert float(_fake(scores, "log2", 4)[0, 0, 0, 1:].sum()) == pytest.approx(
            0.99 * 4095 * 2**-15, rel=1e-5
        )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_start_column_stays_bit_for_bit_and_sets_no_scale(scheme: Scheme) -> None:
    scores = _scores(2, 2, 16, 12)
    scores[..., 0] = 3.0  # far above every word
    known = _fake(scores, scheme, 4, start=True)
    assert torch.equal(known[..., 0], scores[..., 0])
    assert torch.equal(known[..., 1:], _fake(scores[..., 1:], scheme, 4))
    together = _fake(scores, scheme, 4)
    if scheme == "linear":
        assert float((together - scores)[..., 1:].abs().max()) > 2.5 * float(
            (known - scores)[..., 1:].abs().max()
        )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_sample_does_not_depend_on_its_batch(scheme: Scheme) -> None:
    scores = torch.cat([_scores(1, 4, 33, 19, sharp=sharp, seed=1) for sharp in (0.5, 2.0, 6.0)])
    whole = _fake(scores, scheme, 6, start=True)
    for sample in range(3):
        alone = _fake(scores[sample : sample + 1], scheme, 6, start=True)
        assert torch.equal(whole[sample : sample + 1], alone)
    shuffled = _fake(scores[[2, 0, 1, 1]], scheme, 6, start=True)
    assert torch.equal(shuffled, whole[[2, 0, 1, 1]])


def test_the_scale_follows_the_prompt() -> None:
    scores = _scores(1, 4, 33, 19)
    faint = scores / 64  # the start token took the rest
    for scheme in SCHEMES:
        near = _fake(scores, scheme, 5)
        torch.testing.assert_close(_fake(faint, scheme, 5) * 64, near, rtol=1e-5, atol=0)
    assert spread(scores[0], start_apart=False).peak == float(scores.max())
    assert spread(faint[0], start_apart=False).peak == float(scores.max()) / 64


def test_blocks_of_a_sample_give_the_spread_of_the_whole() -> None:
    scores = _scores(4, 32, 19)
    whole = spread(scores, start_apart=True)
    found = merged([spread(scores[:, at : at + 10], start_apart=True) for at in range(0, 32, 10)])
    assert found.peak == whole.peak
    assert found.mean == pytest.approx(whole.mean, rel=1e-6)
    assert found.count == whole.count == 4 * 32 * 18


def test_octaves_are_the_closed_form() -> None:
    keys = 1024
    found = Spread(peak=1.0, mean=1 / keys, count=keys)
    for bits in BITS:
        levels = score_levels(found, "log", bits)
        assert levels.octaves == pytest.approx(10 + 1.5 + 0.75 * (bits - 4))


@pytest.mark.parametrize("sharp", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("keys", [77, 1024])
def test_the_adaptive_base_beats_base_two_and_even_levels(keys: int, sharp: float) -> None:
    """Signal to noise of A v, random values: the reason for the adaptive base."""
    scores = _scores(1, 2, 64, keys, sharp=sharp)
    value = torch.randn(1, 2, keys, 32, generator=torch.Generator().manual_seed(1))

    def sqnr(scheme: Scheme, bits: int) -> float:
        error = (_fake(scores, scheme, bits) - scores) @ value
        return float(10 * torch.log10((scores @ value).square().sum() / error.square().sum()))

    for bits in BITS:
        assert sqnr("log", bits) > sqnr("log2", bits) + (0 if bits == 4 else 4)
        assert sqnr("log", bits) > sqnr("linear", bits) - (3 if sharp == 4 else 0)


@pytest.mark.parametrize("bits", [4, 5, 6])
def test_a_start_token_that_takes_nearly_all_hides_the_words_unless_it_is_apart(bits: int) -> None:
    """As background pixels attend: 97 % to the start token, the rest to 76 words (Fig. 5a)."""
    words = 0.03 * _scores(1, 4, 64, 76, sharp=1.0)
    scores = torch.cat((torch.full((1, 4, 64, 1), 0.97), words), -1)

    def lost(scheme: Scheme, *, start: bool) -> float:
        error = (_fake(scores, scheme, bits, start=start)[..., 1:] - words).square().sum()
        return float(error / words.square().sum())

    assert lost("linear", start=False) > 0.95  # below half a step of 0.97 / 63
    assert lost("log", start=False) > 0.25  # more octaves below the start than the base covers
    assert lost("linear", start=True) < {4: 0.1, 5: 0.03, 6: 0.01}[bits]
    assert lost("log", start=True) < {4: 0.012, 5: 0.004, 6: 0.001}[bits]


@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_rows_keep_their_sum(scheme: Scheme, *, start: bool) -> None:
    scores = _scores(2, 40, 19, sharp=3.0)
    levels = score_levels(spread(scores, start_apart=start), scheme, 5)
    plain = fake_scores(scores, levels, start_apart=start)
    known = fake_scores(scores, levels, start_apart=start, keep_sums=True)
    torch.testing.assert_close(known.sum(-1), torch.ones(2, 40))
    first = int(start)
    factor = scores[..., first:].sum(-1) / plain[..., first:].sum(-1)
    torch.testing.assert_close(known[..., first:], plain[..., first:] * factor[..., None])
    assert torch.equal(known[..., :first], scores[..., :first])


def test_a_row_that_vanished_stays_nothing() -> None:
    scores = torch.full((1, 2, 1000), 1e-3)
    scores[0, 0] = 0
    scores[0, 0, 7] = 1
    levels = score_levels(spread(scores, start_apart=False), "linear", 4)
    known = fake_scores(scores, levels, start_apart=False, keep_sums=True)
    assert float(known[0, 1].abs().max()) == 0
    assert torch.equal(known[0, 0], scores[0, 0])


@pytest.mark.parametrize(("sharp", "left"), [(1.0, 0.8), (2.0, 0.5), (4.0, 0.3)])
def test_kept_sums_take_error_away_the_sharper_the_more(sharp: float, left: float) -> None:
    scores = _scores(2, 64, 77, sharp=sharp)
    value = torch.randn(2, 77, 32, generator=torch.Generator().manual_seed(1)) + 0.5
    levels = score_levels(spread(scores, start_apart=False), "log", 6)
    plain, kept = (
        (fake_scores(scores, levels, start_apart=False, keep_sums=keep) - scores) @ value
        for keep in (False, True)
    )
    assert float(kept.square().sum()) < left * float(plain.square().sum())


def test_one_key_and_no_word_at_all() -> None:
    scores = torch.ones(2, 3, 4, 1)
    for scheme in SCHEMES:
        assert torch.equal(_fake(scores, scheme, 4), scores)
        assert torch.equal(_fake(scores, scheme, 4, start=True), scores)


def test_settings_check_themselves() -> None:
    assert AttentionParams(paper_exact=True).scheme == "log2"
    assert AttentionParams(scores="linear", paper_exact=True).scheme == "linear"
    assert AttentionParams().scheme == "log"
    assert AttentionParams().keeps_sums
    assert not AttentionParams(paper_exact=True).keeps_sums
    with pytest.raises(UserError, match="not offered"):
        AttentionParams(qkv_bits=9)
    with pytest.raises(UserError, match="out of range"):
        AttentionParams(bits=3)
