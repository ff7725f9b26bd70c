"""What a recipe may ask beyond the weights: prompts to calibrate on, and fine-tuning after it."""

from __future__ import annotations

from dataclasses import dataclass

from vqdq.params import Params, param


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationParams(Params):
    """How the inputs of every layer are sampled on the full-precision model."""

    prompts: int = param(
        64,
        label="Prompts",
        help="Pictures the full-precision model draws; more makes the statistics surer.",
        low=1,
        high=4096,
        reference="arXiv 2409.00492, section 4 (256 there)",
    )
    prompt_file: str = param(
        "",
        label="Prompt file",
        help="A text file, one prompt a line; empty uses the model's own or the built-in set.",
        advanced=True,
    )
    steps: int = param(20, label="Steps", unit="steps", low=1, high=1000, advanced=True)
    guidance: float = param(3.0, label="Guidance", low=0.0, high=100.0, advanced=True)
    tokens_per_channel: float = param(
        8.0,
        label="Tokens per channel",
        help="Sampled input vectors for each column of a weight; below 6 feedback overfits.",
        low=1.0,
        high=1000.0,
        advanced=True,
    )
    damping: float = param(
        0.1,
        label="Damping",
        help="Share of the mean second moment added to each: steadier, but less to gain.",
        low=0.0,
        high=10.0,
        reference="arXiv 2210.17323, section 3.3 (0.01 there)",
        advanced=True,
    )
    weighting: str = param(
        "even",
        label="Step weighting",
        help="Every step alike, or each by what its error does to the final latent.",
        choices=("even", "effect"),
        advanced=True,
    )
    bias_correction: bool = param(
        True,
        label="Correct biases",
        help="Biases take up what rounding changes in the mean output.",
        reference="arXiv 1906.04721, section 4.2",
        advanced=True,
    )
    memory_gb: float = param(
        4.0,
        label="Memory for statistics",
        help="Layers are calibrated in as many passes as this asks for.",
        unit="GB",
        low=0.05,
        high=4096.0,
        advanced=True,
    )
    seed: int = param(0, label="Seed", low=0, high=2**53, advanced=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneParams(Params):
    """How the compressed denoiser learns to agree with the full-precision one; codes stay fixed."""

    steps: int = param(
        400,
        label="Training steps",
        help="Scales, codebooks, norms and biases learn; the best of the way is kept.",
        unit="steps",
        low=1,
        high=100000,
        reference="arXiv 2409.00492, section 3",
    )
    batch_size: int = param(
        8,
        label="Batch",
        help="Pictures in a training step, each at another step of its way, both guidance halves.",
        unit="pictures",
        low=1,
        high=1024,
        advanced=True,
    )
    accumulate: int = param(
        1,
        label="Batches a step",
        help="Gradients of so many batches are added up: large models take smaller batches.",
        unit="batches",
        low=1,
        high=1024,
        advanced=True,
    )
    learning_rate: float = param(
        2e-3,
        label="Learning rate",
        help="Of row scales, codebooks, norms and biases; layers kept in 16 bits take a tenth.",
        low=1e-8,
        high=1.0,
        advanced=True,
    )
    codebooks: bool = param(
        True,
        label="Learn codebooks",
        help="Where layers have their own; each of them is decoded again at every step.",
        advanced=True,
    )
    precision: str = param(
        "auto",
        label="Precision",
        help="Of the products while learning; automatic is bfloat16 where the machine has it.",
        choices=("auto", "bfloat16", "float32"),
        advanced=True,
    )
    prompts: int = param(
        96,
        label="Prompts",
        help="Pictures whose way from noise is learnt; an eighth more is held out to judge.",
        low=8,
        high=65536,
        advanced=True,
    )
    guided_weight: float = param(
        0.5,
        label="Weight of the guided error",
        help="0 learns each half by itself, 1 only what guidance makes of the two.",
        low=0.0,
        high=1.0,
        advanced=True,
    )
    seed: int = param(0, label="Seed", low=0, high=2**53, advanced=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class RangeParams(Params):
    """How the ranges of layer inputs are collected, for activation quantizers that need them."""

    prompts: int = param(
        16,
        label="Prompts",
        help="Pictures along whose way the compressed model's inputs are watched.",
        low=1,
        high=4096,
        reference="arXiv 2501.04304, section 5.1 (64 there)",
    )
    prompt_file: str = param(
        "",
        label="Prompt file",
        help="A text file, one prompt a line; empty uses the model's own or the built-in set.",
        advanced=True,
    )
    steps: int = param(20, label="Steps", unit="steps", low=1, high=1000, advanced=True)
    guidance: float = param(3.0, label="Guidance", low=0.0, high=100.0, advanced=True)
    seed: int = param(0, label="Seed", low=0, high=2**53, advanced=True)
