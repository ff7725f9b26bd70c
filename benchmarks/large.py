"""Models of full size with random weights: built, compressed, killed and gone on with, measured.

    python -m benchmarks large                       all of it, into RESULTS.md
    python -m benchmarks.large sdxl /tmp/large       one model, kept in that folder
    python -m benchmarks.large sdxl-part /tmp/large --kill

No weights of these models are needed: their published configs say every shape.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from benchmarks.timing import table
from vqdq.durable import write_text
from vqdq.models.compressor import as_recipe
from vqdq.models.denoisers import skeleton
from vqdq.models.modes import mode_estimates
from vqdq.models.pipelines import config_component
from vqdq.models.weights import write_weights
from vqdq.recipe import METADATA, Plan, resolve
from vqdq.tensors import TensorSpec

ROOT = Path(__file__).parents[1]
RECIPE = "trellis-3bit"

# unet/config.json of stabilityai/stable-diffusion-xl-base-1.0, 2023-07-26
_SDXL: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "layers_per_block": 2,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
# transformer/config.json of black-forest-labs/FLUX.1-dev
_FLUX: dict[str, Any] = {
    "_class_name": "FluxTransformer2DModel",
    "attention_head_dim": 128,
    "guidance_embeds": True,
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 19,
    "num_single_layers": 38,
    "patch_size": 1,
    "pooled_projection_dim": 768,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A denoiser by its config; `part`: with fewer blocks of the same layer shapes."""

    title: str
    pipeline: str
    component: str
    config: dict[str, Any]

    @property
    def plan(self) -> Plan:
        """What the recipe makes of it, from the config alone."""
        return resolve(as_recipe(RECIPE), config_component(self.config, self.component))


_XL, _FLOW = "StableDiffusionXLPipeline", "FluxPipeline"
_ABSENT = (
    "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "image_encoder",
    "feature_extractor",
)  # fmt: skip
MODELS = {
    "sdxl": Model(title="SDXL", pipeline=_XL, component="unet", config=_SDXL),
    "sdxl-part": Model(
        title="SDXL, 1 layer a block",
        pipeline=_XL,
        component="unet",
        config=_SDXL | {"layers_per_block": 1, "transformer_layers_per_block": [1, 1, 1]},
    ),
    "flux": Model(title="FLUX.1", pipeline=_FLOW, component="transformer", config=_FLUX),
    "flux-part": Model(
        title="FLUX.1, 1 + 1 of 19 + 38 blocks",
        pipeline=_FLOW,
        component="transformer",
        config=_FLUX | {"num_layers": 1, "num_single_layers": 1},
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A compression in a process of its own.

    Attributes:
        seconds: wall time, starts included; `load`: of the machine, before and after.
        peak_bytes: highest resident memory (VmHWM), pages of mapped files included.
        own_bytes: highest memory of its own (RssAnon), sampled ten times a second.
        file_bytes: of the denoiser's weights, predicted and found.
        killed_after: layers that were finished when it was killed and started again; None.
        sums: SHA-256 of SHA256SUMS.
    """

    seconds: float
    load: tuple[float, float]
    peak_bytes: int
    own_bytes: int
    file_bytes: int
    killed_after: int | None
    sums: str


def build(model: Model, folder: Path) -> Path:
    """Writes a diffusers folder with random fp16 weights, a tensor at a time; returns it."""
    if (folder / "model_index.json").is_file():
        return folder
    inner = scaffold(model, folder)
    specs = [
        TensorSpec(name=key, dtype=torch.float16, shape=tuple(tensor.shape))
        for key, tensor in skeleton(model.config).state_dict().items()
    ]
    write_weights(inner / "diffusion_pytorch_model.safetensors", specs, METADATA, _random)
    return folder


def scaffold(model: Model, folder: Path) -> Path:
    """Writes all of a folder but the denoiser's weights; returns the denoiser's own folder."""
    inner = folder / model.component
    inner.mkdir(parents=True, exist_ok=True)
    kind = "EulerDiscreteScheduler" if model.pipeline == _XL else "FlowMatchEulerDiscreteScheduler"
    (folder / "scheduler").mkdir(exist_ok=True)
    write_text(folder / "scheduler" / "scheduler_config.json", json.dumps({"_class_name": kind}))
    write_text(inner / "config.json", json.dumps(model.config, indent=2))
    AutoencoderKL(block_out_channels=(32,)).save_pretrained(folder / "vae")
    index: dict[str, Any] = {"_class_name": model.pipeline, "vae": ["diffusers", "AutoencoderKL"]}
    index |= {name: [None, None] for name in _ABSENT}
    index["scheduler"] = ["diffusers", kind]
    index[model.component] = ["diffusers", model.config["_class_name"]]
    write_text(folder / "model_index.json", json.dumps(index, indent=2))
    return inner


def _random(spec: TensorSpec) -> torch.Tensor:
    """Returns weights of the usual size, 1 / √inputs, the same for the same name."""
    seed = int.from_bytes(hashlib.sha256(spec.name.encode()).digest()[:7], "little")
    values = torch.randn(spec.shape, generator=torch.Generator().manual_seed(seed))
    return values.mul_(math.prod(spec.shape[1:]) ** -0.5).half()


def compress(source: Path, output: Path, *, kill: bool = False) -> Measured:
    """Compresses in a process of its own; `kill` ends it with SIGKILL half-way and goes on."""
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "vqdq", "compress", str(source), "--recipe", RECIPE]
    command += ["--output", str(output), "--json"]
    layers = output.with_name(f"{output.name}.partial") / "layers"
    total = len(json.loads((source / "layers.json").read_text())) if kill else 0
    before, started = os.getloadavg()[0], time.perf_counter()
    peak = own = 0
    killed: int | None = None
    while True:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            found = _memory(process.pid)
            peak, own = max(peak, found[0]), max(own, found[1])
            if kill and killed is None and layers.is_dir():
                done = len(list(layers.glob("[0-9]*.safetensors")))
                if 2 * done >= total:
                    process.send_signal(signal.SIGKILL)
                    killed = done
            time.sleep(0.1)
        if process.returncode == 0:
            break
        if process.returncode != -signal.SIGKILL or killed is None:
            raise RuntimeError(f"vqdq compress ended with {process.returncode}")
    weights = [*output.glob("unet/*.safetensors"), *output.glob("transformer/*.safetensors")]
    return Measured(
        seconds=time.perf_counter() - started,
        load=(before, os.getloadavg()[0]),
        peak_bytes=peak,
        own_bytes=own,
        file_bytes=sum(path.stat().st_size for path in weights),
        killed_after=killed,
        sums=hashlib.sha256((output / "SHA256SUMS").read_bytes()).hexdigest(),
    )


def _memory(process: int) -> tuple[int, int]:
    """Returns VmHWM and RssAnon of a process in bytes; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    facts = {line.partition(":")[0]: line.split() for line in lines}
    sizes = (facts.get("VmHWM"), facts.get("RssAnon"))
    return tuple(0 if size is None else 1024 * int(size[1]) for size in sizes)  # type: ignore[return-value]


def measured(name: str, folder: Path, *, kill: bool) -> Measured:
    """Returns what compressing one model took; kept in the folder as JSON."""
    model = MODELS[name]
    source = build(model, folder / name)
    plan = model.plan
    write_text(source / "layers.json", json.dumps([item.layer.name for item in plan.quantized]))
    found = compress(source, folder / f"{name}-{'killed' if kill else 'small'}", kill=kill)
    assert found.file_bytes == plan.predicted_bytes, (found.file_bytes, plan.predicted_bytes)
    way = "killed" if kill else "straight"
    write_text(folder / f"{name}-{way}.json", json.dumps(asdict(found), indent=2))
    return found


def run() -> str:
    """Returns plans and measurements as Markdown; about an hour on two quiet cores."""
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as place:
        for name in ("sdxl", "flux-part"):
            straight = measured(name, Path(place), kill=False)
            killed = measured(name, Path(place), kill=True)
            rows += [_row(name, straight, ""), _row(name, killed, straight.sums)]
            shutil.rmtree(Path(place) / name)
    return "\n\n".join((plans(), results(rows)))


def results(rows: list[list[str]]) -> str:
    """Returns the table of measurements."""
    head = ["compressed, default trellis at 3 bits", "minutes", "load before, after", "file, GB"]
    return table([*head, "peak, GB", "of its own, GB", "killed"], rows)


def _row(name: str, found: Measured, straight: str) -> list[str]:
    killed = "–"
    if found.killed_after is not None:
        same = {"": "", found.sums: ", the same bytes"}.get(straight, ", OTHER BYTES")
        killed = f"after {found.killed_after} layers{same}"
    return [
        MODELS[name].title,
        f"{found.seconds / 60:.1f}",
        f"{found.load[0]:.1f}, {found.load[1]:.1f}",
        f"{found.file_bytes / 1e9:.3f}",
        f"{found.peak_bytes / 1e9:.2f}",
        f"{found.own_bytes / 1e9:.2f}",
        killed,
    ]


def plans() -> str:
    """Returns what the configs alone say: bytes, and memory of the weights in each mode."""
    rows: list[list[str]] = []
    for name in ("sdxl", "flux"):
        plan = MODELS[name].plan
        weights = sum(spec.num_bytes for spec in plan.component.tensors) // 2
        modes = mode_estimates(plan, dtype=torch.bfloat16)
        rows.append(
            [
                MODELS[name].title,
                f"{weights / 1e9:.2f}",
                f"{plan.reference_bytes / 1e9:.2f}",
                f"{plan.predicted_bytes / 1e9:.3f}",
                *(f"{each.weight_bytes / 1e9:.2f}" for each in modes[:3]),
                f"{modes[1].decode_seconds:.1f}",
            ]
        )
    head = ["planned from the config alone", "G weights", "16 bits, GB", "file, GB"]
    head += ["resident, GB", "streaming, GB", "hybrid (half), GB", "streaming, s a call"]
    return table(head, rows)


def main() -> None:
    """Measures one model and keeps everything in a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kill", action="store_true", help="end it half-way, and go on")
    options = parser.parse_args()
    found = measured(options.model, options.folder, kill=options.kill)
    print(results([_row(options.model, found, "")]))


if __name__ == "__main__":
    main()
