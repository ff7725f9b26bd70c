"""Measures everything and rewrites RESULTS.md: python -m benchmarks [part …]."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks import (
    activations,
    allocation,
    capture,
    codec_speed,
    evidence,
    feedback_gain,
    gpu,
    integer,
    large,
    loading,
    outliers,
    people,
    predictions,
    rate_distortion,
    start_token,
    studio,
    sweep,
)
from benchmarks.timing import machine

PARTS = {
    "rate-distortion": (
        "Rate and distortion",
        "Every method and installed peer, from the weights alone, on a 1280 × 1280 Gaussian "
        "weight, on one with heavy tails (Student-t, 5 degrees of freedom, log-normal row scales) "
        "and on every seventh layer of the embedded model that has 100,000 weights. True bits: "
        "scales, zero points, codebooks and padding counted. Error is ‖W−Ŵ‖²/‖W‖², over layers "
        "weighted by their size; the gap is to 2^(−2·bits), the least error of Gaussian weights. "
        "Above trellis: how much more error than the trellis at the same bits, between its sizes. "
        "The figure ends at 11 dB and 6.2 bits.",
        rate_distortion.run,
    ),
    "speed": (
        "Speed of the codecs",
        "One 1280 × 1280 Gaussian weight. Encode: every core, median of 3 runs in turn (16 state "
        "bits: one run). Decode: one core, median of 5 in turn with the product, with the smallest "
        "and the largest; to int8 is to rotated levels, as the integer product takes them.",
        codec_speed.run,
    ),
    "feedback": (
        "Error feedback",
        "A 1280 × 1280 Gaussian weight, inputs with the powers 1/i in a random basis, damping "
        "0.01. Loss is tr(Δ H Δᵀ)/tr(W H Wᵀ). The closed form holds for codecs that round one "
        "column after the other: mean(R²ᵢᵢ)/mean(Hᵢᵢ) with H = R Rᵀ.",
        feedback_gain.run,
    ),
    "outliers": (
        "Activations with planted outliers",
        "256 positions × 320 channels, each value uniform on ± its size. Outliers: 32 channels 16 "
        "times as large, 26 pixels 8 times, or both. Calibrated on 16 inputs, signal-to-noise "
        "ratio in dB on 8 others, beside theory: the error of rounding a uniform value (rotated: a "
        "Gaussian one) at the step that the sizes give, the expected step where ranges are "
        "dynamic. Where a rotated block holds few outliers it is not quite Gaussian, and does up "
        "to 0.9 dB better. Without outliers a rotation loses 4.5 dB: it makes uniform values "
        "Gaussian, and those fill their range less evenly.",
        outliers.run,
    ),
    "start-token": (
        "Attention scores with a planted start token",
        "8 heads × 256 queries, 76 words with softmax scores of normal logits (deviation 2) that "
        "share what the start token leaves them; values are Gaussian. What the words bring to the "
        "output, signal over error. Sums are not kept.",
        start_token.run,
    ),
    "integer": (
        "Integer arithmetic",
        "Medians with the smallest and the largest, in turn; quantization of the inputs included. "
        "Grids were taken from the input. Position and channel: every seventh one ten times as "
        "large, so that DGQ groups them. Rotated: ranges of the token, and weights that are the "
        "trellis's own levels. Small layers: a calibrated range; below 6 to 45 million products "
        "oneDNN's 20 µs a call and ours are more than integers save, so such layers are best "
        "left in 16 bits. Denoisers: int8 weights, a calibrated range for each layer's input, "
        "attention itself in float (in bf16: it and all between the layers). MB: all tensors, "
        "those packed for the kernels included.",
        integer.run,
    ),
    "evidence": (
        "Evidence on the embedded model",
        "200 captions that training never saw, one seed each, 20 steps, guidance 3, everything in "
        "float32 arithmetic with decoded weights. The same layers stay in 16 bits for every row. "
        "Bits are true bits per packed weight, MB is the denoiser's file. SQNR: the guided noise "
        "prediction along the full-precision trajectory of the first 16 captions. PSNR and SSIM "
        "against the pictures of the 16-bit file: medians, PSNR with a 95 % bootstrap interval. As "
        "asked: pictures that the judge finds to show what the caption says, with the 95 % Wilson "
        "interval. Calibrated: 64 training prompts, 20 steps, damping 0.1. Made in: wall seconds "
        "of the work on the layers and of fine-tuning, not of calibration; other work ran beside "
        "it. Empty cells: no pictures were drawn.",
        evidence.run,
    ),
    "allocation": (
        "Bits for each layer",
        "The embedded model, trellis from the weights alone: bits by measured effect against the "
        "plain rule at the same bytes.",
        allocation.run,
    ),
    "activations": (
        "Activations on the embedded model",
        "As the evidence above; inputs of the layers are rounded to A bits beside weights of W "
        "bits (W4, W3: trellis; W16: fp16), attention stays as it is; or the scores alone are "
        "rounded, everything else in float. Ranges: 16 training prompts, 20 steps. Layers: how "
        "many ran in which arithmetic here; attention is always simulated. 8-bit floats: e4m3, a "
        "scale for each token or pixel, and weights rounded to e4m3 by row. As published: groups "
        "anew at each of 20 levels; base 2, one scale a batch.",
        activations.run,
    ),
    "capture": (
        "Recording what happens inside",
        "The embedded model, 20 steps, guidance 3; the record is made, not yet saved. Seconds are "
        "medians, ratios those of pictures drawn in the same turn: median with the smallest and "
        "the largest.",
        capture.run,
    ),
    "sweep": (
        "Sweeps",
        "The embedded model, 5 recipes from the weights alone and the original, 6 prompts of the "
        "evaluation, 20 steps; one thread a worker, a cluster on this computer. Start: until the "
        "first worker answers, and the plan. Units: all of them together. Ideal: the units of the "
        "first row, shared evenly by as many cores as are used; efficiency: ideal over measured. "
        "Opening models is in it: each worker opens its own.",
        sweep.run,
    ),
    "loading": (
        "Opening a compressed model",
        "SDXL with the default trellis at 3 bits, `DiffusionPipeline.from_pretrained` after "
        "`import vqdq`, in a process of its own, three times after a first one that is not "
        "counted; the file is in the disk cache. Memory is the growth of VmHWM, pages of the "
        "mapped file included.",
        loading.run,
    ),
    "large": (
        "Models of full size",
        "Random weights in the shapes of the published configs, two threads, everything in a "
        "process of its own. Memory in each mode: weights alone, computing in bfloat16. Peak is "
        "VmHWM, with pages of mapped files; its own memory (RssAnon) is sampled. Killed: SIGKILL "
        "half-way, the same command again, and SHA256SUMS compared.",
        large.run,
    ),
    "predictions": (
        "Predictions",
        "What is said before anything runs, for what it then took, each in a process of its own "
        "after measuring this computer's pace as the studio does. demo: the embedded model; wide: "
        "random weights in SDXL's widths, five layers calibrated, one of them with 23,040 columns; "
        "sd1: random weights of Stable Diffusion 1.5's size. Medians with the smallest and the "
        "largest of three runs where there are two numbers in brackets.",
        predictions.run,
    ),
    "studio": (
        "Studio",
        "The embedded model, 20 steps. Medians with the smallest and the largest of the runs.",
        studio.run,
    ),
    "people": (
        "Eight people at one studio",
        "Half an hour, all on the machine that is measured: the server, its worker, and eight "
        "browsers with a page open each, which share two cores. Each person has a login; every few "
        "seconds one starts a run or three. A light call is a page's own request, timed by the "
        "browser.",
        people.run,
    ),
    "gpu": (
        "On a card",
        "Kernels in Triton against their references, decoding, products, few rows, the encoders' "
        "searches, a denoiser of SDXL's size with random weights, and other libraries' layers "
        "where they are installed: what one run of `benchmarks/gpu.py` found. Under Triton's "
        "interpreter on a processor every kernel equals its reference.",
        gpu.results,
    ),
}


def main(chosen: list[str]) -> None:
    """Runs the chosen parts (all by default) and writes the file; other parts stay as they were."""
    path = Path(__file__).with_name("RESULTS.md")
    old = path.read_text(encoding="utf-8").split("\n## ")[1:] if path.exists() else []
    kept = {part.partition("\n")[0]: f"## {part.rstrip()}\n" for part in old}
    sections = ["# Results", "", "Rewritten by `make bench`; nothing here is typed by hand.", ""]
    for name, (title, text, run) in PARTS.items():
        if chosen and name not in chosen:
            sections += [kept[title]] if title in kept else []
        else:
            where = [] if name == "gpu" else [f"Measured on {machine()}.", ""]
            sections += [f"## {title}", "", *where, text, "", run(), ""]
    path.write_text("\n".join(sections), encoding="utf-8")
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main(sys.argv[1:])
