"""A blind test's protocol in plain words: what is asked, what it can find, how long it takes."""

from __future__ import annotations

from collections.abc import Sequence

from vqdq.jobs.protocol import Mode, Protocol
from vqdq.metrics.power import detectable_rate, detectable_share, pairs_for_equivalence
from vqdq.metrics.verdict import ALPHA
from vqdq.quantities import digits
from vqdq.ui.wording import count

MODES: tuple[tuple[str, Mode], ...] = (
    ("Which is better?", "preference"),
    ("Can you tell them apart?", "abx"),
    ("How few bits can you tell?", "staircase"),
)
TITLES = {mode: title for title, mode in MODES}
SHORT = {"match": "Text match", "defects": "Defects", "beauty": "Beauty", "overall": "Overall"}
"""A question's name in lists and tables."""


def in_words(protocol: Protocol) -> tuple[str, ...]:
    """Returns the protocol as sentences."""
    names = [entrant.name for entrant in protocol.models]
    seeds = _listed(protocol.seeds)
    drawn = ", ".join(f"{value} {key}" if key == "steps" else f"{key} {value}"
                      for key, value in protocol.drawing)  # fmt: skip
    prompts = count(len(protocol.prompts), "prompt")
    lines: list[str] = []
    if protocol.mode == "staircase":
        levels = ", ".join(digits(entrant.bits) for entrant in protocol.models[1:])
        lines.append(f"{names[0]} against compressed models of {levels} bits.")
        lines.append(
            "X is one of two pictures. Two right answers in a row make the next trial harder (more"
            " bits), a wrong one easier; it ends when enough is known, after 60 trials at most."
        )
        lines.append(f"Pictures from {prompts}, seed {seeds}; {drawn}.")
        return tuple(lines)
    if len(names) == 2:
        lines.append(f"{names[0]} against {names[1]}.")
    else:
        many = len(protocol.comparisons)
        lines.append(f"{', '.join(names)}: each against each, {count(many, 'comparison')}.")
    each = "" if len(names) == 2 else " for each two models"
    lines.append(
        f"{count(protocol.pairs, 'pair')}{each}, from {prompts}, seed {seeds}; {drawn}. Both"
        " pictures start from the same noise."
    )
    if protocol.mode == "abx":
        lines.append("A third picture, X, is one of the two. Which one?")
    else:
        keys = [SHORT.get(question.key, question.key).lower() for question in protocol.asked]
        main = SHORT.get(protocol.primary, protocol.primary).lower()
        lines.append(f"Asked apart: {', '.join(keys)}. What decides: {main}.")
    lines.append("Sides and order are drawn by lot, for each person anew.")
    lines += _controls(protocol)
    if protocol.mode == "preference":
        lines.append(f"Equally good means: within ±{100 * protocol.margin:g} points of 50 : 50.")
    return tuple(lines)


def power_words(protocol: Protocol) -> tuple[str, ...]:
    """Returns what the number of pairs can find, as sentences; () for a staircase."""
    number = protocol.pairs
    if protocol.mode == "staircase":
        return ()
    if protocol.mode == "abx":
        share = detectable_share(number)
        if share is None:
            return (f"{count(number, 'trial')} cannot tell anything from guessing. Use 5 or more.",)
        return (
            f"With {number} trials, somebody who is right {100 * share:.0f}% of the time would be"
            " told from guessing with 80% power.",
        )
    tests = len(protocol.comparisons) * len(protocol.asked)
    rate = detectable_rate(number, alpha=ALPHA / tests)
    after = "" if tests == 1 else f", corrected for {tests} tests"
    if rate is None:
        found = f"{count(number, 'pair')} cannot show any preference{after}. Use more."
    else:
        found = (
            f"With {number} pairs you would detect a {100 * rate:.0f} : {100 * (1 - rate):.0f}"
            f" preference with 80% power{after}."
        )
    needed = pairs_for_equivalence(protocol.margin)
    return (
        found,
        f"To show that two models are equally good within ±{100 * protocol.margin:g} points takes"
        f" about {needed} decided pairs.",
    )


def answers(protocol: Protocol) -> int:
    """Returns how many answers each person gives; about 40 in a staircase."""
    if protocol.mode == "staircase":
        return 40
    shown = protocol.pairs * len(protocol.comparisons)
    if protocol.mode == "preference":
        repeats = max(1, round(protocol.repeats * shown)) if protocol.repeats else 0
        shown += protocol.identical + protocol.obvious + repeats
    return shown * len(protocol.asked)


def _listed(seeds: Sequence[int]) -> str:
    run = len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    return f"{seeds[0]}–{seeds[-1]}" if run else ", ".join(map(str, seeds))


def _controls(protocol: Protocol) -> list[str]:
    if protocol.mode != "preference":
        return []
    parts: list[str] = []
    if protocol.identical:
        parts.append(f"{count(protocol.identical, 'pair')} of one picture twice")
    if protocol.obvious and protocol.obvious_model is not None:
        bits = digits(protocol.obvious_model.bits)
        parts.append(f"{count(protocol.obvious, 'pair')} of full precision against {bits} bits")
    if protocol.repeats:
        parts.append(f"{100 * protocol.repeats:g}% of the pairs again with sides swapped")
    if not parts:
        return []
    return [f"Mixed in, to see how far answers can be believed: {', '.join(parts)}."]
