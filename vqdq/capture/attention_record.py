"""What a capture of attention leaves behind: masses, score histograms and word maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

import vqdq.capture.archive as archive
from vqdq.capture.tokens import PromptTokens
from vqdq.errors import UserError
from vqdq.kernels.statistics import FLOOR_OCTAVES as FLOOR_OCTAVES
from vqdq.kernels.statistics import SCORE_BINS as SCORE_BINS
from vqdq.params import nearest

Floats = npt.NDArray[np.float32]

_KIND, _VERSION = "attention", 2


def score_edges() -> npt.NDArray[np.float64]:
    """Returns the score bins' edges in octaves (log2), [SCORE_BINS + 1]; the first is open."""
    return np.arange(-1, SCORE_BINS) / 2 - FLOOR_OCTAVES


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AttentionRecord:
    """How the picture looked at the text, in cross- or joint attention, in one generation.

    Attributes:
        layers: names in the order they ran; `halves`: ("uncond", "cond") or ("all",).
        timesteps: of each sampler step; `tokens`: the prompt of each half.
        mapped: positions of the tokens that have maps (all but padding, of the last half).
        mass: mean score of each token over the picture, [halves, layers, steps, heads, tokens];
            sums to 1 over tokens in cross-attention; in joint attention the rest is for the
            picture (`picture_mass`); NaN for heads that a layer does not have.
        histogram: counts of scores, [halves, layers, steps, groups, SCORE_BINS].
        layer_maps: by layer, mean over heads and steps, [mapped, h, w]; guided half only.
        step_maps: mean over heads and layers, resized to the latent, [steps, mapped, h, w].
        spread: largest and mean score of all tokens but the start sign, before any rounding, from
            which the levels of a quantizer follow, [2, halves, layers, steps].
        samples: pictures of the guided half behind the numbers.
        self_layers: layers that attend to the picture itself, those of joint attention included;
            `self_histogram`: counts of their scores, [halves, self layers, steps, SCORE_BINS];
            `self_spread`: as `spread`; `self_maps`: by layer, how much a place is looked at, mean
            over heads, steps and queries of the guided half, [h, w]. Evenly spaced queries stand
            for all.
        context: what the caller wanted remembered.
    """

    layers: tuple[str, ...]
    halves: tuple[str, ...]
    timesteps: tuple[float, ...]
    tokens: tuple[PromptTokens, ...]
    mapped: tuple[int, ...]
    mass: Floats
    histogram: Floats
    layer_maps: Mapping[str, Floats]
    step_maps: Floats
    spread: Floats
    samples: int
    self_layers: tuple[str, ...]
    self_histogram: Floats
    self_spread: Floats
    self_maps: Mapping[str, Floats]
    context: Mapping[str, str | int | float]

    @property
    def prompt(self) -> PromptTokens:
        """The tokens of the conditional half."""
        return self.tokens[-1]

    @property
    def has_words(self) -> bool:
        """Whether the words of the prompt are known; else its columns are one group."""
        return bool(self.prompt.words)

    @property
    def picture_mass(self) -> Floats:
        """What the picture keeps of its scores for itself, [halves, layers, steps, heads].

        0 in cross-attention; in joint attention what the text does not get.
        """
        return (1 - self.mass.sum(axis=-1)).clip(0, 1)

    def half(self, name: str) -> int:
        """Returns the index of a half; a record without guidance has one half for every name."""
        return self.halves.index(name) if name in self.halves else len(self.halves) - 1

    def row(self, layer: str) -> int:
        """Returns the index of a layer.

        Raises:
            UserError: the layer was not recorded.
        """
        if layer not in self.layers:
            raise UserError(
                "This layer's attention was not recorded.",
                where=layer,
                remedy=nearest(layer, self.layers, "layer"),
            )
        return self.layers.index(layer)

    def self_counts(
        self, layer: str, *, step: int | None = None, half: str = "cond"
    ) -> npt.NDArray[np.float64]:
        """Returns how many self-attention scores of a layer fall in each bin, [SCORE_BINS].

        Raises:
            UserError: the layer was not recorded.
        """
        counts = self.self_histogram[self.half(half), self._self_row(layer)]  # [steps, bins]
        chosen = counts if step is None else counts[[step]]
        return chosen.sum(axis=0, dtype=np.float64)

    def self_map(self, layer: str) -> Floats | None:
        """Returns how much each place of the picture is looked at, [h, w]; None without a grid.

        Raises:
            UserError: the layer was not recorded.
        """
        self._self_row(layer)
        return self.self_maps.get(layer)

    def _self_row(self, layer: str) -> int:
        if layer not in self.self_layers:
            raise UserError(
                "This layer's self-attention was not recorded.",
                where=layer,
                remedy=nearest(layer, self.self_layers, "layer"),
            )
        return self.self_layers.index(layer)

    def token_map(
        self, tokens: tuple[int, ...], *, layer: str | None = None, step: int | None = None
    ) -> Floats:
        """Returns how much each place looks at these tokens together, [h, w], in 0 ... 1.

        Args:
            tokens: positions, for instance those of a word; their scores are added.
            layer: one layer, mean over steps.
            step: one step, mean over layers; with neither it is the mean of both.

        Raises:
            UserError: a padding token, an unknown layer, or both a layer and a step.
        """
        if layer is not None and step is not None:
            raise UserError(
                "Word maps are kept by layer or by step, not by both.",
                where="map",
                remedy="Choose one layer over all steps, or one step over all layers.",
            )
        missing = [at for at in tokens if at not in self.mapped]
        if missing:
            raise UserError(f"Token {missing[0]} is padding and has no map.", where="map")
        if layer is not None:
            self.row(layer)
            maps = self.layer_maps[layer]  # [mapped, h, w]
        else:
            maps = self.step_maps.mean(axis=0) if step is None else self.step_maps[step]
        chosen = [self.mapped.index(at) for at in tokens]
        return maps[chosen].sum(axis=0)

    def word_mass(self, layer: str | None = None) -> Floats:
        """Returns the mean score of each token of the guided half; of one layer, else of all."""
        mass = self.mass[-1] if layer is None else self.mass[-1, [self.row(layer)]]
        return np.nanmean(mass, axis=(0, 1, 2))

    def save(self, path: Path) -> None:
        """Writes the record to one `.npz` file, atomically."""
        arrays: dict[str, archive.Array] = {
            "mass": self.mass,
            "histogram": self.histogram,
            "step_maps": self.step_maps,
            "spread": self.spread,
            "self_histogram": self.self_histogram,
            "self_spread": self.self_spread,
        }
        arrays |= {f"self_maps/{name}": maps for name, maps in self.self_maps.items()}
        arrays |= {f"layer_maps/{name}": maps for name, maps in self.layer_maps.items()}
        header = {
            "kind": _KIND,
            "version": _VERSION,
            "layers": self.layers,
            "halves": self.halves,
            "timesteps": archive.plain_times(self.timesteps),
            "samples": self.samples,
            "self_layers": self.self_layers,
            "tokens": [tokens.to_json() for tokens in self.tokens],
            "mapped": self.mapped,
            "context": dict(self.context),
        }
        archive.save(path, header, arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Returns the record saved at `path`.

        Raises:
            UserError: no record, a damaged one, or one of another version.
        """
        header, arrays = archive.load(path, kind=_KIND, version=_VERSION)

        def maps(place: str) -> dict[str, Floats]:
            found = {name: array for name, array in arrays.items() if name.startswith(place)}
            return {name.removeprefix(place): array for name, array in found.items()}

        with archive.reading(path):
            return cls(
                layers=tuple(header["layers"]),
                halves=tuple(header["halves"]),
                timesteps=archive.real_times(header["timesteps"]),
                tokens=tuple(PromptTokens.from_json(values) for values in header["tokens"]),
                mapped=tuple(header["mapped"]),
                mass=arrays["mass"],
                histogram=arrays["histogram"],
                layer_maps=maps("layer_maps/"),
                step_maps=arrays["step_maps"],
                spread=arrays["spread"],
                samples=int(header["samples"]),
                self_layers=tuple(header["self_layers"]),
                self_histogram=arrays["self_histogram"],
                self_spread=arrays["self_spread"],
                self_maps=maps("self_maps/"),
                context=header["context"],
            )
