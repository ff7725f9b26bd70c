"""What the codec benchmarks measure: every method at its settings, and weights to encode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

import vqdq
from vqdq import codecs
from vqdq.codecs.base import Codec
from vqdq.layers.matrix import weight_matrix
from vqdq.models.denoisers import denoiser

SIZE = 1280
LARGE = 100_000  # weights: what the sample of the demo model's layers is taken from


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One row of the tables.

    Attributes:
        line: what the figure draws it as; rows of one line are joined, "" is in no figure.
        method: registered codec; `values`: its settings, defaults left out.
        slow: encodes under half a million weights a second, and is timed once only.
    """

    line: str
    method: str
    values: dict[str, Any] = field(default_factory=dict[str, Any])
    slow: bool = False

    @property
    def text(self) -> str:
        """The settings in words."""
        words = (
            f"{key}={str(value).lower() if isinstance(value, bool) else value}"
            for key, value in self.values.items()
        )
        return ", ".join(words) or "defaults"

    def codec(self) -> Codec[Any]:
        """Returns the codec."""
        return codecs.create(self.method, **self.values)


def _lines(
    line: str, method: str, key: str, choices: Sequence[object], *, slow: bool = False, **rest: Any
) -> tuple[Setting, ...]:
    return tuple(
        Setting(line=line, method=method, values={key: choice} | rest, slow=slow)
        for choice in choices
    )


_234 = (2, 3, 4)
OURS: tuple[Setting, ...] = (
    *_lines("Trellis, 16 state bits", "trellis", "bits", _234, state_bits=16, slow=True),
    *_lines("Trellis", "trellis", "bits", (2, 3, 4, 5, 6)),
    *_lines("", "trellis", "bits", _234, state_bits=10),
    *_lines("", "trellis", "bits", _234, state_bits=8),
    *_lines("Additive", "additive", "num_codebooks", _234),
    *_lines("Lloyd–Max", "lloyd_max", "bits", _234),
    *_lines("Round to nearest, clipped", "uniform", "bits", _234),
    *_lines("", "uniform", "bits", _234, clip="absmax"),
    *_lines("", "uniform", "bits", _234, clip="absmax", group_size=64, symmetric=False),
    *_lines("NF4", "nf4", "double_quant", (True, False)),
)
PEERS: tuple[Setting, ...] = (
    *_lines("HQQ", "hqq", "bits", _234),
    *_lines("GGUF", "gguf", "kind", ("MXFP4", "Q4_0", "Q4_1", "Q5_0", "Q5_1")),
    *_lines("", "gguf", "kind", ("Q8_0",)),
    *_lines("quanto", "quanto", "bits", (2, 4)),
    *_lines("", "quanto", "bits", (8,)),
    *_lines("bitsandbytes NF4", "bnb", "double_quant", (True, False)),
    *_lines("", "bnb", "kind", ("fp4",)),
    *_lines("SDNQ", "sdnq", "bits", (3, 4, 2)),
    *_lines("SDNQ, 8-bit scales", "sdnq", "bits", _234, scales="uint8"),
    *_lines(
        "SDNQ, Lloyd–Max rows",
        "sdnq",
        "bits",
        _234,
        codebook=True,
        group_size=-1,
        scales="float16",
    ),
    *_lines("", "sdnq", "bits", (4,), scales="float16", svd=True),
    *_lines("", "sdnq", "bits", (4,), scales="float16", hadamard=True),
    *_lines("", "sdnq", "bits", (8,)),
)


def settings() -> tuple[Setting, ...]:
    """Returns every setting whose method can be used here."""
    known = codecs.available()
    return tuple(setting for setting in (*OURS, *PEERS) if setting.method in known)


def absent() -> str:
    """Returns a sentence on the peers that are not installed, "" when there is none."""
    missing = [name for name in codecs.names() if name not in codecs.available()]
    return f"Not installed: {', '.join(missing)}." if missing else ""


def gaussian(size: int = SIZE) -> torch.Tensor:
    """Returns independent N(0, 1) weights."""
    return torch.randn(size, size, generator=torch.Generator().manual_seed(0))


def heavy(size: int = SIZE) -> torch.Tensor:
    """Returns Student-t weights of 5 degrees of freedom with log-normal row scales."""
    generator = torch.Generator().manual_seed(1)
    normal = torch.randn(size, size, generator=generator)
    chi = torch.randn(5, size, size, generator=generator).square().sum(0)
    rows = torch.exp(0.5 * torch.randn(size, 1, generator=generator))
    return normal / (chi / 5).sqrt() * rows


def demo_layers(every: int = 7) -> list[tuple[torch.Tensor, int]]:
    """Returns weight and taps of every seventh large layer of the demo model, in its order."""
    _, model = denoiser(vqdq.load("demo"))
    layers = vqdq.plan("demo", "rtn-4bit").component.layers
    names = [layer.name for layer in layers if layer.shape.count >= LARGE]
    return [weight_matrix(model.get_submodule(name)) for name in names[::every]]
