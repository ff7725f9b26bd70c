"""Training's parts: orthogonal updates, equal shares of work, resuming, steps drawn in strata."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vqdq.demo import muon, pieces
from vqdq.demo.denoiser import STEPS, draw_steps, new_denoiser, signal_and_noise
from vqdq.demo.parallel import Schedule, Trainer
from vqdq.demo.proxy import changed
from vqdq.demo.scenes import EXAMPLE_PROMPTS, parse
from vqdq.demo.sizes import SIZES
from vqdq.demo.text import class_counts, labels, layout
from vqdq.demo.vae import new_autoencoder, normalise_


def test_orthogonalised_singular_values_are_near_one() -> None:
    matrix = torch.randn(96, 300, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(muon.orthogonalise(matrix, steps=5))
    assert values.min() > 0.5
    assert values.max() < 1.3


def fit(folder: Path, samples: int, *, workers: int = 2, stop_at: int = 0) -> Tensor:
    """The weight of a linear model trained by processes on y = 3 x; `stop_at`: samples after which
    the run dies at a checkpoint."""
    torch.manual_seed(0)
    model = nn.Linear(4, 4, bias=True)
    schedule = Schedule(
        samples=samples,
        seconds=1e9,
        batch=8,
        warmup=5,
        average=0.9,
        checkpoint_seconds=0 if stop_at else 90,
    )
    trainer = Trainer(
        model,
        [model.weight],
        rates=muon.Rates(matrix=0.05, other=0.05),
        schedule=schedule,
        folder=folder,
        seed=1,
        workers=workers,
    )

    def loss(generator: torch.Generator, _: float) -> tuple[Tensor, dict[str, float]]:
        x = torch.randn(8, 4, generator=generator)
        error = (model(x) - 3 * x).square().mean()
        return error, {"loss": float(error.detach())}

    def dies(done: int) -> None:
        if stop_at and done >= stop_at:
            raise InterruptedError

    trainer.run(loss, dies)
    trainer.use_average_()
    return model.weight.detach().clone()


def test_two_processes_train_and_resume(tmp_path: Path) -> None:
    weight = fit(tmp_path / "whole", 4800)
    assert torch.allclose(weight, 3 * torch.eye(4), atol=0.1)
    assert torch.equal(weight, fit(tmp_path / "whole", 4800))  # done: read, not trained again
    assert torch.equal(weight, fit(tmp_path / "other", 4800))  # seeded


def test_a_run_that_died_ends_with_the_weights_of_one_that_did_not(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", 800, workers=1)
    for stop_at in (80, 400):
        with pytest.raises(InterruptedError):
            fit(tmp_path / "died", 800, workers=1, stop_at=stop_at)
        assert pieces.facts(tmp_path / "died")["steps"] == stop_at / 8
    assert torch.equal(fit(tmp_path / "died", 800, workers=1), whole)


def test_matrices_moved_together_move_as_they_do_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((200, 60), (128, 60), (64, 300), (72, 60), (64, 300))
    matrices = [torch.randn(shape, generator=generator) for shape in shapes]
    for one, other in zip(
        muon.orthogonalise_each(matrices), map(muon.orthogonalise, matrices), strict=True
    ):
        assert one.shape == other.shape
        assert (one - other).norm() < 0.02 * other.norm()  # bfloat16 sums in another order


def test_the_named_sizes_fit_together() -> None:
    """As many parameters as 60 MB hold in 16 bits: what the repository ships at most."""
    counts: dict[str, int] = {}
    for name, size in SIZES.items():
        assert all(width % 64 == 0 for width in size.widths)
        with torch.device("meta"):
            unet, autoencoder = new_denoiser(size), new_autoencoder(size)
        assert unet.config["sample_size"] * 8 == autoencoder.config["sample_size"] == 128
        assert unet.config["in_channels"] == autoencoder.config["latent_channels"]
        parts = (unet, autoencoder)
        counts[name] = sum(p.numel() for part in parts for p in part.parameters())
    text_encoder, others = 1_365_168, 250_000  # bytes of the rest, as it is shipped
    assert 2 * counts["large"] + text_encoder + others < 60e6
    assert counts["standard"] < 0.92 * counts["large"]
    assert counts["large"] > 28.5e6


def test_steps_cover_the_distribution() -> None:
    steps = draw_steps(4000, torch.Generator().manual_seed(0))
    assert steps.min() >= 0
    assert steps.max() < STEPS
    assert abs(float(steps.float().median()) / STEPS - 0.61) < 0.01  # sigmoid(0.45)
    signal, noise = signal_and_noise()
    assert torch.allclose(signal**2 + noise**2, torch.ones(STEPS))


def test_labels_and_layout_name_the_scene() -> None:
    scene = parse(EXAMPLE_PROMPTS[0])  # large red circle above a small blue square
    named = labels(scene)
    assert all(0 <= label < count for label, count in zip(named, class_counts(), strict=True))
    cells = layout(scene)
    assert set(cells[:4].unique().tolist()) == {0, 1}
    assert set(cells[4:].unique().tolist()) == {0, 2}


def test_changed_captions_differ_in_one_attribute() -> None:
    scene = parse(EXAMPLE_PROMPTS[0])
    assert changed(scene, "order").relation == "below"
    assert changed(scene, "size").objects[0].size == "small"
    assert changed(scene, "shape").objects[1] == scene.objects[1]


def test_normalised_latents_decode_to_the_same_picture() -> None:
    torch.manual_seed(0)
    model = new_autoencoder().eval()
    pictures = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8).numpy()
    batch = torch.as_tensor(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        before = model.decode(model.encode(batch).latent_dist.mean).sample
        normalise_(model, pictures)
        latents = model.encode(batch).latent_dist.mean
        after = model.decode(latents).sample
    assert torch.allclose(before, after, atol=1e-3)
    assert latents.mean((0, 2, 3)).abs().max() < 0.05
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 0.05
