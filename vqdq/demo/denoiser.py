"""The denoiser: a UNet with cross-attention that learns to predict velocity in the latents of
scenes.

What made it learn shapes and order early: a text encoder that already knows them, text added to the
time embedding, velocity loss without weights by step, more weight on the cells of objects, steps
drawn around the middle where the layout is decided, and Muon.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from vqdq.demo import muon
from vqdq.demo.dataset import Dataset
from vqdq.demo.parallel import CPU, Schedule, Trainer
from vqdq.demo.sizes import STANDARD, Size
from vqdq.demo.text import WIDTH, tokenize
from vqdq.demo.vae import channels_last_, matrices

STEPS = 1000
_BETAS = "squaredcos_cap_v2"
_OBJECT_WEIGHT = 3.0  # loss weight of the cells of objects, against 1 elsewhere
_DROPPED = 0.1  # share of samples whose caption is empty, for classifier-free guidance
_PARAPHRASED = 0.15
_CURRICULUM = ((0.12, 0.7), (1.0, 0.35))  # until this progress, that share of one-object scenes
_STEP_MEAN, _STEP_DEVIATION = 0.45, 1.1  # steps are sigmoid(normal) of these


def new_denoiser(size: Size = STANDARD) -> UNet2DConditionModel:
    """An untrained UNet, residual branches at zero; weights from torch's global generator."""
    model = UNet2DConditionModel(
        sample_size=size.cells,
        in_channels=size.latent_channels,
        out_channels=size.latent_channels,
        block_out_channels=size.widths,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,  # the number of heads, in spite of its name
        norm_num_groups=16,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        resnet_time_scale_shift="scale_shift",
    )
    for name, module in model.named_modules():
        if name.endswith((".conv2", ".proj_out")) or name == "conv_out":
            for parameter in module.parameters():
                nn.init.zeros_(parameter)
    return model


def new_scheduler() -> DPMSolverMultistepScheduler:
    """The sampler saved with the pipeline: DPM-Solver++ of second order, for about 20 steps."""
    return DPMSolverMultistepScheduler(
        num_train_timesteps=STEPS,
        beta_schedule=_BETAS,
        prediction_type="v_prediction",
        steps_offset=1,
    )


def signal_and_noise() -> tuple[Tensor, Tensor]:
    """The share of signal and of noise [STEPS] in a latent at each step; their squares add to 1."""
    kept = DDPMScheduler(num_train_timesteps=STEPS, beta_schedule=_BETAS).alphas_cumprod
    return kept.sqrt(), (1 - kept).sqrt()


def draw_steps(count: int, generator: torch.Generator) -> Tensor:
    """Steps [count], one from each of `count` equally likely strata of the distribution."""
    uniform = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    normal = torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6))
    return (torch.sigmoid(_STEP_MEAN + _STEP_DEVIATION * normal) * STEPS).long().clamp(0, STEPS - 1)


def velocity_error(
    model: UNet2DConditionModel,
    latents: Tensor,
    states: Tensor,
    steps: Tensor,
    noise: Tensor,
) -> Tensor:
    """Squared error [n, h, w] of the velocity (arXiv 2202.00512, app. D), mean over channels.

    Args:
        latents: clean [n, channels, h, w].
        states: of the text encoder [n, tokens, width].
        steps: [n] in 0..STEPS-1, on the processor.
        noise: standard normal, like `latents`.
    """
    device = latents.device
    signal, spread = (table[steps][:, None, None, None].to(device) for table in signal_and_noise())
    noisy = (signal * latents + spread * noise).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16):
        predicted = model(noisy, steps.to(device), states, return_dict=False)[0]
    return (predicted.float() - (signal * noise - spread * latents)).square().mean(1)


def train(
    load: Callable[[], Dataset],
    tokenizer: CLIPTokenizer,
    encoder: CLIPTextModel,
    folder: Path,
    schedule: Schedule,
    *,
    size: Size = STANDARD,
    seed: int,
    workers: int,
    device: torch.device = CPU,
    check: Callable[[UNet2DConditionModel, int], None],
) -> UNet2DConditionModel:
    """A trained denoiser, on the processor: the moving average of the weights.

    Args:
        load: gives the data; it is called if there is training to do.
        check: `check(model, samples)` runs at each checkpoint; an exception from it ends the run.
    """
    torch.manual_seed(seed)
    model = new_denoiser(size)
    channels_last_(model)
    if device.type == "cpu":
        # Fused attention took a fifth of a step in bfloat16, going backward; plain products are
        # faster there.
        model.set_attn_processor(AttnProcessor())
    skip = ("conv_in", "conv_out", "time_embedding", "add_embedding")
    trainer = Trainer(
        model,
        matrices(model, skip),
        rates=muon.Rates(),
        schedule=schedule,
        folder=folder,
        seed=seed,
        workers=workers,
        device=device,
    )
    if trainer.finished:
        trainer.use_average_()
        return model
    data = load()
    encoder.to(device)  # pyright: ignore[reportArgumentType]
    empty = tokenize(tokenizer, [""])[0]

    def batch_loss(generator: torch.Generator, progress: float) -> tuple[Tensor, dict[str, float]]:
        count = schedule.batch
        single = next(share for until, share in _CURRICULUM if progress <= until)
        rows = data.draw(generator, count, single)
        other = torch.rand(count, generator=generator) < _PARAPHRASED
        tokens = data.tokens[rows, other.long()]
        dropped = torch.rand(count, generator=generator) < _DROPPED
        tokens = torch.where(dropped[:, None], empty, tokens)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            states = encoder(tokens.to(device)).last_hidden_state
        latents = data.latents[rows].float()
        noise = torch.randn(latents.shape, generator=generator).to(device)
        latents = latents.to(device)
        error = velocity_error(model, latents, states, draw_steps(count, generator), noise)
        cells = data.cells[rows].float().to(device)
        weight = 1 + (_OBJECT_WEIGHT - 1) * cells
        numbers = {
            "loss": float(error.detach().mean()),
            "object_loss": float((error.detach() * cells).sum() / cells.sum().clamp(min=1)),
        }
        return (weight * error).sum() / weight.sum(), numbers

    trainer.run(batch_loss, lambda samples: check(model, samples))
    trainer.use_average_()
    encoder.to(CPU)  # pyright: ignore[reportArgumentType]
    return model
