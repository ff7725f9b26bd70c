"""Training's parts: orthogonal updates, equal shares of work, resuming, steps drawn in strata."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from vqdq.demo import muon
from vqdq.demo.denoiser import STEPS, draw_steps, signal_and_noise
from vqdq.demo.parallel import Schedule, Trainer
from vqdq.demo.proxy import changed
from vqdq.demo.scenes import EXAMPLE_PROMPTS, parse
from vqdq.demo.text import class_counts, labels, layout
from vqdq.demo.vae import new_autoencoder, normalise_


def test_orthogonalised_singular_values_are_near_one() -> None:
    matrix = torch.randn(96, 300, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(muon.orthogonalise(matrix, steps=5))
    assert values.min() > 0.5
    assert values.max() < 1.3


def fit(folder: Path, samples: int) -> Tensor:
    """The weight of a linear model trained by two processes on y = 3 x."""
    torch.manual_seed(0)
    model = nn.Linear(4, 4, bias=True)
    schedule = Schedule(samples=samples, seconds=1e9, batch=8, warmup=5, average=0.9)
    trainer = Trainer(
        model,
        [model.weight],
        rates=muon.Rates(matrix=0.05, other=0.05),
        schedule=schedule,
        folder=folder,
        seed=1,
        workers=2,
    )

    def loss(generator: torch.Generator, _: float) -> tuple[Tensor, dict[str, float]]:
        x = torch.randn(8, 4, generator=generator)
        error = (model(x) - 3 * x).square().mean()
        return error, {"loss": float(error.detach())}

    trainer.run(loss)
    trainer.use_average_()
    return model.weight.detach().clone()


def test_two_processes_train_and_resume(tmp_path: Path) -> None:
    weight = fit(tmp_path / "whole", 4800)
    assert torch.allclose(weight, 3 * torch.eye(4), atol=0.1)
    assert torch.equal(weight, fit(tmp_path / "whole", 4800))  # done: read, not trained again
    assert torch.equal(weight, fit(tmp_path / "other", 4800))  # seeded


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
