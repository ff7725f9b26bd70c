"""Settings of the attention quantizer: scores after the softmax, and q, k, v before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from vqdq.activations.scores import Scheme
from vqdq.params import Params, param


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionParams(Params):
    """How attention is quantized; the products run in float ("simulated")."""

    scores: str = param(
        "log",
        label="Attention scores",
        help="Logarithmic levels with a base that fits the bits, base 2 as published, or even.",
        choices=("off", "log", "log2", "linear"),
        reference="arXiv 2501.04304, section 4.2",
    )
    bits: int = param(8, label="Bits of a score", unit="bits", low=4, high=8)
    start_apart: bool = param(
        True,
        label="Start token apart",
        help="The first text token keeps its scores, key and value in full precision.",
        reference="arXiv 2501.04304, section 4.2",
    )
    keep_sums: bool = param(
        True,
        label="Rows keep their sum",
        help="Scores are scaled after rounding to what they added up to; not in the paper.",
        advanced=True,
    )
    self_attention: bool = param(
        True, label="Self-attention too", help="Without a start token.", advanced=True
    )
    qkv_bits: int = param(
        8,
        label="Bits of q, k and v",
        help="16 leaves them as they are.",
        unit="bits",
        choices=(4, 5, 6, 7, 8, 16),
    )
    qkv_method: str = param(
        "dynamic",
        label="Method of q, k and v",
        help="A scale for each token, or the groups of DGQ.",
        choices=("dynamic", "dgq"),
        advanced=True,
    )
    qkv_groups: int = param(
        8, label="Groups of q, k and v", choices=(1, 2, 4, 8, 16), advanced=True
    )
    paper_exact: bool = param(
        False,
        label="Exactly as published",
        help="One scale for the whole batch, base 2, sums not kept, the start token's value "
        "quantized.",
        advanced=True,
    )

    @property
    def scheme(self) -> Scheme:
        """The levels of the scores; as published the logarithm has base 2."""
        return "log2" if self.paper_exact and self.scores == "log" else cast(Scheme, self.scores)

    @property
    def keeps_sums(self) -> bool:
        """Whether rows are scaled to their sums; not as published."""
        return self.keep_sums and not self.paper_exact
