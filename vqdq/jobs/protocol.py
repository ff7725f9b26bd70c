"""What a blind test is, fixed before the first vote: a frozen record and its hash.

Whoever reads the result can check that nothing was chosen afterwards: models, prompts, seeds,
questions with their wording, how many pairs, the margin, the controls and the seed of every
shuffle are in the record, and its hash is shown before the first vote and beside the result.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, cast, get_args

from vqdq.errors import UserError

Mode = Literal["preference", "abx", "staircase"]
"""`preference`: which is better. `abx`: which of two is the third. `staircase`: abx at the bit
width at which this person is just able to tell."""

CHOICES = ("a", "equal", "b", "both bad", "skip")
ABX_CHOICES = ("a", "b", "skip")

_VERSION = 1
_SEED_BITS = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What is asked about two pictures.

    Attributes:
        key: short name in tables.
        text: the wording, part of the hash.
        shows_prompt: whether the prompt stands beside the pictures.
    """

    key: str
    text: str
    shows_prompt: bool = True


QUESTIONS = (
    Question(key="match", text="Which picture shows better what the text asks for?"),
    Question(key="defects", text="Which picture has fewer defects?", shows_prompt=False),
    Question(key="beauty", text="Which picture is more beautiful?", shows_prompt=False),
    Question(key="overall", text="Which picture do you prefer, all in all?"),
)
"""Asked apart and in this order: the text first, the overall impression last."""

ABX_QUESTION = Question(key="abx", text="Is X the same picture as A, or as B?", shows_prompt=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Entrant:
    """A model that takes part.

    Attributes:
        name: shown after the test.
        digest: hash of what draws the pictures (a recipe's, a file's).
        bits: bits a weight; a staircase needs it.
        model: what draws the pictures, as a request names it; "" for the name itself.
    """

    name: str
    digest: str
    bits: float | None = None
    model: str = ""

    @property
    def reference(self) -> str:
        """What draws the pictures."""
        return self.model or self.name


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """A blind test before anybody votes.

    Attributes:
        name: title of the test.
        models: the first is the reference (full precision). In a staircase the others are its
            levels.
        prompts, seeds: every prompt with the first seed, then every prompt with the second, …:
            the first `pairs` of these are shown for every pair of models.
        pairs: of pictures for every two models.
        questions: asked about every pair of pictures, in this order; `primary` is the one that
            the test is about.
        margin: how far a win rate may be from one half and still count as "as good".
        identical: control pairs that show one picture twice; `obvious`: control pairs of the
            reference against `obvious_model` (2 bits, say).
        repeats: share of the pairs that every assessor sees again, sides swapped.
        drawing: scheduler, steps, guidance, size: what else makes a picture.
        mode: see `Mode`. An ABX test has no controls and no repeats.
        order_seed: 128 bits in hex from which order, sides and names follow. Whoever knows it can
            undo the blinding, so it stays on the server until the end.

    Raises:
        UserError: naming the entry that does not fit.
    """

    name: str
    models: tuple[Entrant, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    pairs: int
    mode: Mode = "preference"
    questions: tuple[Question, ...] = QUESTIONS
    primary: str = "overall"
    margin: float = 0.1
    identical: int = 2
    obvious: int = 0
    obvious_model: Entrant | None = None
    repeats: float = 0.1
    drawing: tuple[tuple[str, str], ...] = ()
    order_seed: str = field(default_factory=lambda: secrets.token_hex(_SEED_BITS // 8))

    def __post_init__(self) -> None:
        for entry, wrong, what, remedy in self._faults():
            if wrong:
                raise UserError(what, where=f"protocol.{entry}", remedy=remedy)

    def _faults(self) -> tuple[tuple[str, bool, str, str], ...]:
        names = [entrant.name for entrant in self.models]
        keys = [question.key for question in self.questions]
        cells = len(self.prompts) * len(self.seeds)
        preference = self.mode == "preference"
        widths = [entrant.bits for entrant in self.models[1:]]
        all_differ = None not in widths and len(set(widths)) == len(widths) > 1
        other = self.obvious_model
        clash = other is not None and other.name in names and other not in self.models[1:]
        return (
            ("mode", self.mode not in get_args(Mode), f"{self.mode!r} is not a mode.",
             f"Use one of: {', '.join(get_args(Mode))}."),
            ("name", not self.name.strip(), "the test has no name.", "Give it one."),
            ("models", len(self.models) < 2, "a test compares at least two models.", "Add one."),
            ("models", clash or len(set(names)) < len(names), "two models have one name.",
             "Rename one."),
            ("models", not all(e.name and e.digest for e in self.entrants),
             "a model has no name or no digest.", "Name the models and what they are."),
            ("models", self.mode == "abx" and len(self.models) > 2, "ABX compares two models.",
             "Choose two, or make several tests."),
            ("models", self.mode == "staircase" and not all_differ,
             "a staircase needs two or more models of different bits.", "Add more bit widths."),
            ("prompts", not all(p.strip() for p in self.prompts) or not self.prompts,
             "there is no prompt, or an empty one.", "Choose prompts."),
            ("prompts", len(set(self.prompts)) < len(self.prompts), "a prompt is there twice.",
             "Remove the second."),
            ("seeds", not self.seeds or len(set(self.seeds)) < len(self.seeds),
             "there is no seed, or one twice.", "Name different seeds."),
            ("pairs", not 1 <= self.pairs <= cells,
             f"{self.pairs} pairs cannot be shown with {cells} pictures a model.",
             f"Use 1 to {cells}, or add prompts or seeds."),
            ("questions", not keys or len(set(keys)) < len(keys),
             "there is no question, or one twice.", "Ask different questions."),
            ("primary", preference and self.primary not in keys,
             f'"{self.primary}" is not asked.', f"Use one of: {', '.join(keys)}."),
            ("margin", not (math.isfinite(self.margin) and 0 < self.margin < 0.5),
             f"{self.margin} is no margin.", "Use a share between 0 and 0.5, such as 0.1."),
            ("identical", not 0 <= self.identical <= 1000, "is out of range.", "Use 0 to 1000."),
            ("obvious", not 0 <= self.obvious <= 1000, "is out of range.", "Use 0 to 1000."),
            ("obvious", self.obvious > 0 and self.obvious_model is None,
             "there is no model for the obvious pairs.", "Name one, such as 2 bits."),
            ("repeats", not 0 <= self.repeats <= 1, f"{self.repeats} is no share.",
             "Use 0 to 1, such as 0.1."),
            ("order_seed", not _is_hex(self.order_seed), "is not 32 hexadecimal digits.",
             "Leave it out; it is drawn."),
        )  # fmt: skip

    @property
    def entrants(self) -> tuple[Entrant, ...]:
        """The models, and behind them the one of the obvious pairs."""
        return self.models if self.obvious_model is None else (*self.models, self.obvious_model)

    @property
    def comparisons(self) -> tuple[tuple[int, int], ...]:
        """Every two models, by number; the earlier one is the first."""
        return tuple(itertools.combinations(range(len(self.models)), 2))

    @property
    def asked(self) -> tuple[Question, ...]:
        """The questions of this mode."""
        return self.questions if self.mode == "preference" else (ABX_QUESTION,)

    @property
    def choices(self) -> tuple[str, ...]:
        """The answers of this mode."""
        return CHOICES if self.mode == "preference" else ABX_CHOICES

    def cell(self, number: int) -> tuple[str, int]:
        """Returns prompt and seed of the pair with that number."""
        count = len(self.prompts)
        return self.prompts[number % count], self.seeds[number // count % len(self.seeds)]

    @property
    def digest(self) -> str:
        """SHA-256 of the record, in hex: the same text means the same test."""
        text = json.dumps(
            self.to_json(),
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=False,
            allow_nan=False,
        )
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Returns every entry, defaults included."""
        return {
            "version": _VERSION,
            "name": self.name,
            "mode": self.mode,
            "models": [_entrant_json(entrant) for entrant in self.models],
            "prompts": list(self.prompts),
            "seeds": list(self.seeds),
            "pairs": self.pairs,
            "questions": [
                {"key": q.key, "text": q.text, "shows_prompt": q.shows_prompt}
                for q in self.questions
            ],
            "primary": self.primary,
            "margin": self.margin,
            "identical": self.identical,
            "obvious": self.obvious,
            "obvious_model": self.obvious_model and _entrant_json(self.obvious_model),
            "repeats": self.repeats,
            "drawing": [list(entry) for entry in self.drawing],
            "order_seed": self.order_seed,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, digest: str = "") -> Self:
        """Returns the protocol in `values`.

        Args:
            values: from `to_json`.
            digest: when given, what the record must hash to.

        Raises:
            UserError: a damaged record, one of another version, or one that was changed.
        """
        if values.get("version") != _VERSION:
            raise UserError(
                f"has version {values.get('version')!r}; this program reads {_VERSION}.",
                where="protocol",
                remedy="Use the program that wrote it.",
            )
        try:
            other = cast("dict[str, Any] | None", values["obvious_model"])
            plain = {
                key: values[key]
                for key in ("name", "mode", "pairs", "primary", "margin", "identical", "obvious",
                            "repeats", "order_seed")
            }  # fmt: skip
            found = cls(
                models=tuple(Entrant(**entry) for entry in values["models"]),
                prompts=tuple(values["prompts"]),
                seeds=tuple(values["seeds"]),
                questions=tuple(Question(**entry) for entry in values["questions"]),
                obvious_model=None if other is None else Entrant(**other),
                drawing=tuple((str(key), str(value)) for key, value in values["drawing"]),
                **plain,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                "is damaged.", where="protocol", remedy="Take it from the votes file."
            ) from error
        if digest and found.digest != digest:
            raise UserError(
                "was changed after it was frozen; its hash does not fit.",
                where="protocol",
                remedy="Votes on it prove nothing. Make a new test.",
            )
        return found


def _entrant_json(entrant: Entrant) -> dict[str, Any]:
    plain = {"name": entrant.name, "digest": entrant.digest, "bits": entrant.bits}
    return plain | ({"model": entrant.model} if entrant.model else {})


def _is_hex(text: str) -> bool:
    return len(text) == _SEED_BITS // 4 and all(c in "0123456789abcdef" for c in text)
