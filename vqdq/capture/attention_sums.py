"""What a capture adds up of attention scores, and the record that it makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vqdq import kernels
from vqdq.capture.attention_record import SCORE_BINS, AttentionRecord
from vqdq.capture.self_attention import Key, Mean, SelfAttention, Spread
from vqdq.capture.steps import StepClock
from vqdq.capture.tokens import GROUPS, PromptTokens, untold
from vqdq.errors import UserError

MAX_GRID = 64
"""Maps that average over layers have at most this many rows and columns."""


class AttentionRecorder:
    """Collects while its `record_attention` block runs; `result()` gives the record so far."""

    def __init__(
        self,
        *,
        tokens: PromptTokens | None,
        negative: PromptTokens | None,
        guided: bool,
        context: Mapping[str, str | int | float],
    ) -> None:
        if tokens is not None and guided != (negative is not None):
            raise UserError(
                "the batch has two halves exactly when there is a negative prompt.",
                where="guidance",
                remedy="Pass its tokens as `negative`, for an empty prompt too.",
            )
        self.clock = StepClock(guided=guided)
        self._context = dict(context)
        self._tokens: tuple[PromptTokens, ...] = ()
        if tokens is not None:
            self._know((tokens,) if negative is None else (negative, tokens))
        self._grids: dict[str, tuple[int, int] | None] = {}  # in the order of the first call
        self._mass: dict[Key, Mean] = {}
        self._histogram: dict[Key, npt.NDArray[np.int64]] = {}
        self._spread: dict[Key, Spread] = {}
        self._samples = 0
        self._self = SelfAttention(self.clock)
        self._layer_maps: dict[str, Mean] = {}
        self._step_maps: dict[int, Mean] = {}

    def _know(self, tokens: tuple[PromptTokens, ...]) -> None:
        self._tokens = tokens
        labels = tokens[-1].labels
        self._mapped = tuple(at for at, label in enumerate(labels) if label != "<pad>")
        self._groups = [np.array(each.groups, np.int64) for each in tokens]
        starts = tokens[-1].positions("start")
        self._rest = [at for at in range(len(labels)) if at not in starts]

    def see_self(self, name: str, found: Tensor, used: Tensor) -> None:
        """Adds scores of some queries of a self-attention, before and after they are rounded."""
        self._self.add(name, found, used)

    def see(self, name: str, blocks: Iterable[tuple[Tensor, Tensor]], places: int) -> None:
        """Adds the scores of one call of the layer `name`.

        Args:
            blocks: [batch, heads, places, tokens] of some heads after the others, as the softmax
                gives them and as the layer rounds them.
            places: queries of the picture.
        """
        key = (name, max(self.clock.step, 0))
        grid = self._grids.setdefault(name, self.clock.grid(places))
        samples = 0
        masses: list[Tensor] = []
        guided: list[Tensor] = []  # [samples, places, tokens], sums over heads
        for exact, used in blocks:
            self._check(name, used.shape[-1])
            parts = self.clock.halved(used)  # [halves, samples, heads, places, tokens]
            samples = parts.shape[1]
            masses.append(parts.mean(dim=(1, 3)))
            guided.append(parts[-1].sum(dim=(0, 1)))
            self._count(key, parts)
            rest = self.clock.halved(exact)[..., self._rest]
            self._spread.setdefault(key, Spread()).add(rest)
        mass = torch.cat(masses, dim=1)  # [halves, heads, tokens]
        self._mass.setdefault(key, Mean()).add(mass, samples)
        if key[1] == 0 and name == next(iter(self._grids)):
            self._samples += samples
        if grid is not None:
            mean = torch.stack(guided).sum(dim=0) / (samples * mass.shape[1])
            self._add_maps(name, key[1], mean[:, list(self._mapped)], grid, samples)

    def _check(self, name: str, columns: int) -> None:
        if not self._tokens:
            self._know((untold(columns),) * len(self.clock.halves))
        elif columns != len(self._tokens[-1].labels):
            raise UserError(
                f"The layer reads {columns} tokens, the prompt has {len(self._tokens[-1].labels)}.",
                where=name,
                remedy="Pass the tokens of this pipeline's own tokenizer, or none.",
            )

    def _count(self, key: Key, parts: Tensor) -> None:
        counts = np.stack(
            [
                kernels.score_counts(part, groups, len(GROUPS))
                for part, groups in zip(parts, self._groups, strict=True)
            ]
        )
        self._histogram[key] = self._histogram[key] + counts if key in self._histogram else counts

    def _add_maps(
        self, name: str, step: int, mean: Tensor, grid: tuple[int, int], samples: int
    ) -> None:
        """Adds how each place looks at each mapped token, [places, mapped]."""
        maps = mean.T.reshape(-1, *grid)
        self._layer_maps.setdefault(name, Mean()).add(maps, samples)
        size = self.clock.latent_grid or grid
        shrink = max(1, -(-max(size) // MAX_GRID))
        common = (-(-size[0] // shrink), -(-size[1] // shrink))
        resized = nn.functional.interpolate(
            maps[None], size=common, mode="bilinear", align_corners=False
        )[0]
        self._step_maps.setdefault(step, Mean()).add(resized, samples)

    def result(self) -> AttentionRecord:
        """Returns everything seen so far, layers in the order they ran.

        Raises:
            UserError: no layer that reads the text ran.
        """
        layers = tuple(self._grids)
        if not layers:
            raise UserError(
                "No cross-attention layer ran.",
                where="attention",
                remedy="Capture while a picture is drawn, with a model that reads its prompt.",
            )
        shape = (len(self._tokens), len(layers), len(self.clock.timesteps) or 1)
        heads = max(mean.value.shape[1] for mean in self._mass.values())
        mass = np.full((*shape, heads, len(self._tokens[-1].labels)), np.nan, np.float32)
        histogram = np.zeros((*shape, len(GROUPS), SCORE_BINS), np.float32)
        spread = np.full((2, *shape), np.nan, np.float32)
        for (name, step), mean in self._mass.items():
            row = layers.index(name)
            mass[:, row, step, : mean.value.shape[1]] = mean.value
            histogram[:, row, step] = self._histogram[name, step]
            found = self._spread.get((name, step))
            if found is not None and found.peak.ndim:
                spread[:, :, row, step] = found.peak, found.mean.value
        return AttentionRecord(
            layers=layers,
            halves=self.clock.halves,
            timesteps=tuple(self.clock.timesteps),
            tokens=self._tokens,
            mapped=self._mapped,
            mass=mass,
            histogram=histogram,
            layer_maps={name: mean.value for name, mean in self._layer_maps.items()},
            step_maps=np.stack([self._step_maps[at].value for at in sorted(self._step_maps)])
            if self._step_maps
            else np.zeros((0, len(self._mapped), 1, 1), np.float32),
            spread=spread,
            samples=self._samples,
            self_layers=self._self.layers,
            self_histogram=self._self.histogram(),
            self_spread=self._self.spread(),
            self_maps=self._self.maps(),
            context=self._context,
        )
