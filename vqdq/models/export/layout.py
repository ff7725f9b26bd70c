"""Names and shapes of a model's tensors in the layout of its first authors.

Programs that grew up around single files (ComfyUI, A1111, stable-diffusion.cpp) know a model by
these names. Some original tensors are several of diffusers' own, one below the other (a fused
q, k, v), so a `Piece` says from which tensors one is put together; nothing else is ever computed,
and diffusers' own converters give back every bit (`tests/models/test_single_file.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

from vqdq.errors import UserError
from vqdq.tensors import TensorSpec

Read = Callable[[str], torch.Tensor]
Change = Callable[[torch.Tensor], torch.Tensor]


def as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the tensor."""
    return tensor


def swap_halves(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the lower half of the rows above the upper: (scale, shift) as (shift, scale)."""
    first, second = tensor.chunk(2, dim=0)
    return torch.cat([second, first])


def transposed(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the transpose, in memory as in shape."""
    return tensor.T.contiguous()


def as_convolution(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a matrix [out, in] as a 1 x 1 convolution [out, in, 1, 1]; others as they are."""
    return tensor[:, :, None, None] if tensor.ndim == 2 else tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where one of diffusers' tensors goes.

    Attributes:
        key: the original name.
        part, parts: which of how many equal-width tensors below each other it is.
        change: what is done to the whole.
    """

    key: str
    part: int = 0
    parts: int = 1
    change: Change = as_it_is


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """An original tensor: the tensors it is put together from, and the change afterwards."""

    key: str
    sources: tuple[str, ...]
    change: Change = as_it_is

    def build(self, read: Read) -> torch.Tensor:
        """Returns the original tensor."""
        parts = [read(name) for name in self.sources]
        return self.change(parts[0] if len(parts) == 1 else torch.cat(parts))

    def spec(self, specs: Mapping[str, TensorSpec]) -> TensorSpec:
        """Returns its name, dtype and shape without any data."""
        found = self.build(
            lambda name: torch.empty(specs[name].shape, dtype=specs[name].dtype, device="meta")
        )
        return TensorSpec.of(self.key, found)


def pieces(names: Iterable[str], place: Callable[[str], Place | None], what: str) -> list[Piece]:
    """Returns the original tensors that `names` make.

    Args:
        place: where a name goes; None where the original layout has no such tensor.
        what: the model, for the error.

    Raises:
        UserError: a tensor without a place, or a part without the others.
    """
    found: dict[str, dict[int, str]] = {}
    places: dict[str, Place] = {}
    for name in names:
        there = place(name)
        if there is None:
            raise UserError(
                f"the original layout has no place for {name}.",
                where=what,
                remedy="Export it as diffusers-fp16.",
            )
        found.setdefault(there.key, {})[there.part] = name
        places[there.key] = there
    made: list[Piece] = []
    for key, parts in found.items():
        if sorted(parts) != list(range(places[key].parts)):
            raise UserError(
                f"{key} lacks a part beside {', '.join(parts.values())}.",
                where=what,
                remedy="The folder is incomplete: copy it again.",
            )
        sources = tuple(parts[part] for part in range(len(parts)))
        made.append(Piece(key=key, sources=sources, change=places[key].change))
    return made
