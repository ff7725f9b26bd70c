"""Second moments of what goes into a layer, from a few rows of each call; activations are not kept.

A row is what one output position of a layer sees: a token of a linear layer, a patch of a
convolution. Only the sampled rows are gathered, because the patches of a whole convolution take
kh·kw times its input.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from vqdq.layers.matrix import input_matrix, weight_shape

BUFFER_ROWS = 512
"""Rows gathered before each product; more is not faster (4608 columns: 0.133 against 0.132 ms)."""

# Smaller values are taken as 0: their products would be denormal, which some processors multiply 50
# times slower, and channels that a model has switched off (silu of -80) are full of them.
_TINY = 1e-18

_BLOCK = 384  # only blocks on and above the diagonal are computed: 1.7 times faster at 4608 columns


def row_count(layer: nn.Module, inputs: torch.Tensor) -> int:
    """Returns how many rows one call of `layer` with these inputs has, over the whole batch."""
    if not isinstance(layer, nn.Conv2d):
        return inputs.numel() // inputs.shape[-1]
    height, width = _output_size(layer, inputs)
    return inputs.shape[0] * height * width


def input_rows(layer: nn.Module, inputs: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Returns the rows `index` of `input_matrix(layer, inputs)`, gathering only those.

    Args:
        index: int64 [n] into the rows, batch first, then positions in reading order.

    Raises:
        UserError: a grouped convolution, or no quantizable layer.
    """
    shape = weight_shape(layer)
    if not isinstance(layer, nn.Conv2d):
        return inputs.reshape(-1, shape.in_features)[index]
    if layer.groups != 1:
        return input_matrix(layer, inputs)  # which says why it cannot
    _, width = _output_size(layer, inputs)
    positions = row_count(layer, inputs) // inputs.shape[0]
    sample, position = index // positions, index % positions
    down, along = _taps(layer, inputs.device)  # [taps]
    y = (position // width * layer.stride[0])[:, None] + down  # [n, taps], in the padded picture
    x = (position % width * layer.stride[1])[:, None] + along
    patches = _padded(layer, inputs).permute(0, 2, 3, 1)[sample[:, None], y, x]
    return patches.reshape(len(index), shape.in_features)  # from [n, taps, channels]


def sample_index(total: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """Returns `count` different numbers below `total`, evenly spread, each as likely as any other.

    One is drawn from each of `count` equal stretches, and the whole is rotated by a random amount:
    every picture and every part of it comes in, which a free draw only does on average.
    """
    count = min(count, total)
    edges = torch.arange(count + 1) * total // count
    inside = torch.rand(count, generator=generator, dtype=torch.float64) * edges.diff()
    shift = int(torch.randint(total, (1,), generator=generator))
    return (edges[:-1] + inside.long() + shift) % total


def halves_index(total: int, count: int, halves: int, generator: torch.Generator) -> torch.Tensor:
    """Returns about `count` row numbers, equally many from each of `halves` parts of a batch."""
    each = total // halves
    wanted = math.ceil(count / halves)
    parts = [sample_index(each, wanted, generator) + half * each for half in range(halves)]
    return torch.cat(parts)


class Moments:
    """Weighted sums of x xᵀ, x and |x| over rows that come in pieces of any size.

    The sums depend on the order of the rows, not on how they were cut into pieces.

    Attributes:
        columns: taps * channels; `rows`: how many came in.
        low, high: the extremes of each channel that `bound` saw, float32 [channels].
    """

    def __init__(self, columns: int, *, taps: int = 1) -> None:
        self.columns = columns
        self.rows = 0
        self.low = torch.full((columns // taps,), math.inf)
        self.high = torch.full((columns // taps,), -math.inf)
        self._weight = 0.0
        self._sums = torch.zeros(0, 0)  # until the first rows say where they are
        self._buffer = torch.empty(0, columns)
        self._filled = 0
        self._total = torch.zeros(2, columns, dtype=torch.float64)  # of x and |x|

    @staticmethod
    def bytes(columns: int) -> int:
        """Returns the memory of an accumulator and of its result."""
        return 4 * columns * (columns + BUFFER_ROWS)

    def add(self, rows: torch.Tensor, weight: float = 1.0) -> None:
        """Adds rows [n, columns] that count `weight` each."""
        rows = rows.detach().float()
        if not len(self._sums):
            self._sums = rows.new_zeros(self.columns, self.columns)
            self._buffer = rows.new_empty(BUFFER_ROWS, self.columns)
        self.rows += len(rows)
        self._weight += weight * len(rows)
        both = torch.stack([rows.sum(dim=0), rows.abs().sum(dim=0)]).cpu().double()
        self._total += weight * both
        scaled = functional.hardshrink(rows * math.sqrt(weight), _TINY)
        while len(scaled):
            room = scaled[: BUFFER_ROWS - self._filled]
            self._buffer[self._filled : self._filled + len(room)] = room
            self._filled += len(room)
            scaled = scaled[len(room) :]
            if self._filled == BUFFER_ROWS:
                self._flush()

    def bound(self, inputs: torch.Tensor, *, conv: bool) -> None:
        """Widens `low` and `high` to a layer's whole input, sampled or not."""
        over = (0, 2, 3) if conv else tuple(range(inputs.ndim - 1))
        values = inputs.detach()
        self.low = torch.minimum(self.low, values.amin(dim=over).float().cpu())
        self.high = torch.maximum(self.high, values.amax(dim=over).float().cpu())

    def hessian(self) -> torch.Tensor:
        """Returns E[x xᵀ], float32 [columns, columns], exactly symmetric; ends the collection."""
        if not self.rows:
            return torch.zeros(self.columns, self.columns)
        self._flush()
        self._buffer = self._buffer[:0].clone()
        sums, block = self._sums, _BLOCK
        for start in range(0, self.columns, block):
            stop = start + block
            corner = sums[start:stop, start:stop]
            corner.copy_(corner.triu() + corner.triu(1).T)
            sums[stop:, start:stop] = sums[start:stop, stop:].T
        return sums.div_(self._weight or 1.0).cpu()

    def mean(self) -> torch.Tensor:
        """Returns E[x], float32 [columns]."""
        return (self._total[0] / (self._weight or 1.0)).float()

    def mean_magnitude(self) -> torch.Tensor:
        """Returns E|x|, float32 [columns]."""
        return (self._total[1] / (self._weight or 1.0)).float()

    def _flush(self) -> None:
        rows = self._buffer[: self._filled]
        for start in range(0, self.columns, _BLOCK):
            stop = start + _BLOCK
            self._sums[start:stop, start:].addmm_(rows[:, start:stop].T, rows[:, start:])
        self._filled = 0


def _output_size(layer: nn.Conv2d, inputs: torch.Tensor) -> tuple[int, int]:
    left, right, top, bottom = _border(layer)
    reach = [
        step * (size - 1) + 1 for step, size in zip(layer.dilation, layer.kernel_size, strict=True)
    ]
    height = (inputs.shape[2] + top + bottom - reach[0]) // layer.stride[0] + 1
    width = (inputs.shape[3] + left + right - reach[1]) // layer.stride[1] + 1
    return height, width


def _taps(layer: nn.Conv2d, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns how far down and along each tap lies, int64 [taps] each, in reading order."""
    down = torch.arange(layer.kernel_size[0], device=device) * layer.dilation[0]
    along = torch.arange(layer.kernel_size[1], device=device) * layer.dilation[1]
    return down.repeat_interleave(len(along)), along.repeat(len(down))


def _padded(layer: nn.Conv2d, inputs: torch.Tensor) -> torch.Tensor:
    border = _border(layer)
    if not any(border):
        return inputs
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return functional.pad(inputs, border, mode=mode)


def _border(layer: nn.Conv2d) -> list[int]:
    """Returns the padding left, right, top and bottom, "same" worked out."""
    return list(layer._reversed_padding_repeated_twice)  # pyright: ignore[reportPrivateUsage]
