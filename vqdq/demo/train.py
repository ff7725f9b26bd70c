"""Trains the demo model from nothing: `python -m vqdq.demo.train --output assets/demo --work
.demo-work`.

Stages, each resumed where it stopped: pictures, autoencoder, text encoder, data set, denoiser,
publish, evaluate. Everything is seeded; the length of the two long stages is a budget of minutes,
so two machines of different speed end with different weights.

On a card (`--device cuda`) the three models are trained there in bfloat16, by one process; pictures
are rendered and judged by `--workers` processes as ever. What a later stage needs of an earlier one
are its small files alone: `autoencoder/normalised`, `text/encoder.pt`, and the pieces of a
checkpoint (`vqdq.demo.pieces`). So a run on a machine that only lends its card can be published and
evaluated elsewhere, from those folders, with the same command.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from vqdq.demo import card, dataset, denoiser, evaluate, export, proxy, scenes, sizes, text, vae
from vqdq.demo.parallel import Schedule
from vqdq.errors import UserError

STAGES = ("pictures", "autoencoder", "text", "data", "denoiser", "publish", "evaluate")
_PICTURES = 3000  # of each of two seeds, for the autoencoder
_CARD = 8  # times as many samples a step, and in all, on a card


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What to train, where, and for how long."""

    output: Path
    work: Path
    autoencoder_minutes: float = 10.0
    text_minutes: float = 2.0
    denoiser_minutes: float = 75.0
    scenes: int = 48_000
    captions: int = 500
    workers: int = 2
    seed: int = 0
    size: str = "standard"
    device: str = "cpu"
    until: str = STAGES[-1]

    @property
    def autoencoder(self) -> Schedule:
        """The autoencoder's schedule."""
        return Schedule(
            samples=30_000 * self._more,
            seconds=60 * self.autoencoder_minutes,
            batch=12 * self._more,
            average=0.995,
        )

    @property
    def denoiser(self) -> Schedule:
        """The denoiser's schedule."""
        return Schedule(
            samples=600_000 * self._more,
            seconds=60 * self.denoiser_minutes,
            batch=24 * self._more,
        )

    @property
    def _more(self) -> int:
        return 1 if self.device == "cpu" else _CARD

    @property
    def place(self) -> torch.device:
        """Where models are trained."""
        return torch.device(self.device)

    @property
    def trainers(self) -> int:
        """Processes that train one model together."""
        return self.workers if self.device == "cpu" else 1

    def reaches(self, stage: str) -> bool:
        """Whether `stage` is to be done."""
        return STAGES.index(stage) <= STAGES.index(self.until)


def run(plan: Plan) -> None:
    """Does every stage of `plan` that is not done yet."""
    torch.set_num_threads(1)
    plan.work.mkdir(parents=True, exist_ok=True)
    _require_size(plan)
    if not plan.reaches("autoencoder"):
        _pictures(plan)
        return
    autoencoder = _autoencoder(plan)
    if not plan.reaches("text"):
        return
    tokenizer, encoder = text.train(
        plan.work / "text", seconds=60 * plan.text_minutes, seed=plan.seed, device=plan.place
    )

    def data() -> dataset.Dataset:
        return dataset.load(
            plan.work / "data",
            autoencoder,
            tokenizer,
            count=plan.scenes,
            seed=plan.seed + 1,
            workers=plan.workers,
        )

    if not plan.reaches("denoiser"):
        if plan.reaches("data"):
            data()
        return
    model = denoiser.train(
        data,
        tokenizer,
        encoder,
        plan.work / "denoiser",
        plan.denoiser,
        size=sizes.SIZES[plan.size],
        seed=plan.seed,
        workers=plan.trainers,
        device=plan.place,
        check=_early_check(plan, autoencoder, tokenizer, encoder),
    )
    if plan.reaches("publish"):
        _publish(plan, tokenizer, encoder, autoencoder, model)
    if plan.reaches("evaluate"):
        _evaluate(plan)


def _require_size(plan: Plan) -> None:
    """Raises UserError where the work directory belongs to a model of another size."""
    path = plan.work / "size.txt"
    if not path.exists():
        path.write_text(f"{plan.size}\n", encoding="utf-8")
    begun = path.read_text(encoding="utf-8").strip()
    if begun != plan.size:
        raise UserError(
            f"holds a model of the size {begun}.",
            where=str(plan.work),
            remedy=f"Go on with --size {begun}, or name another --work.",
        )


def _pictures(plan: Plan) -> Path:
    path, resolution = plan.work / "pool.npy", sizes.SIZES[plan.size].resolution
    if not path.exists():
        parts = [
            dataset.render_many(_PICTURES, plan.seed + offset, 0.8, resolution)[0]
            for offset in (1, 2)
        ]
        np.save(path, np.concatenate(parts))
    return path


def _autoencoder(plan: Plan) -> AutoencoderKL:
    folder = plan.work / "autoencoder"
    done = folder / "normalised"
    if not done.exists():
        pool = _pictures(plan)
        model = vae.train(
            pool,
            folder,
            plan.autoencoder,
            size=sizes.SIZES[plan.size],
            seed=plan.seed,
            workers=plan.trainers,
            device=plan.place,
        )
        vae.normalise_(model, np.load(pool, mmap_mode="c")[:1000])
        model.save_pretrained(done)
    model = AutoencoderKL.from_pretrained(done)
    vae.channels_last_(model)
    return model.eval()


def _early_check(
    plan: Plan, autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer, encoder: CLIPTextModel
) -> Callable[[UNet2DConditionModel, int], None]:
    """A check, run at each checkpoint, that logs how much wrong captions hurt and stops a bad
    run."""
    probe = proxy.make_probe(autoencoder, seed=plan.seed + 77)
    log = plan.work / "denoiser" / "proxy.jsonl"

    def check(model: UNet2DConditionModel, samples: int) -> None:
        rise = proxy.wrong_caption_rise(model, tokenizer, encoder, probe)
        line = json.dumps({"samples": samples} | {k: round(v, 3) for k, v in rise.items()})
        print(line, flush=True)
        with log.open("a") as file:
            file.write(line + "\n")
        proxy.stop_bad_run(rise, samples)

    return check


def _publish(
    plan: Plan,
    tokenizer: CLIPTokenizer,
    encoder: CLIPTextModel,
    autoencoder: AutoencoderKL,
    model: UNet2DConditionModel,
) -> None:
    plan.output.parent.mkdir(parents=True, exist_ok=True)
    export.publish(
        plan.output, tokenizer=tokenizer, encoder=encoder, autoencoder=autoencoder, denoiser=model
    )


def _evaluate(plan: Plan) -> None:
    rows, _ = evaluate.evaluate(plan.output, plan.captions, plan.workers)
    print(evaluate.table(rows))
    evaluate.save(rows, plan.output / "results.json")
    record = card.Record(
        seed=plan.seed,
        size=sizes.SIZES[plan.size],
        parameters=card.parameters(plan.output),
        machine=card.machine(plan.device, plan.workers),
        scenes=plan.scenes,
        autoencoder=card.stage(plan.work / "autoencoder", plan.autoencoder.batch * plan.trainers),
        text=card.stage(plan.work / "text", text.BATCH),
        denoiser=card.stage(plan.work / "denoiser", plan.denoiser.batch * plan.trainers),
    )
    (plan.output / "README.md").write_text(card.model_card(rows, record))
    examples = evaluate.draw(
        evaluate.load_pipeline(plan.output),
        list(scenes.EXAMPLE_PROMPTS),
        list(range(len(scenes.EXAMPLE_PROMPTS))),
    )
    sheet = np.concatenate([np.concatenate(row, axis=1) for row in np.split(examples, 2)])
    Image.fromarray(sheet).save(plan.output / card.EXAMPLES)


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line and trains."""
    default = Plan(output=Path("assets/demo"), work=Path(".demo-work"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=default.output)
    parser.add_argument("--work", type=Path, default=default.work)
    parser.add_argument("--autoencoder-minutes", type=float, default=default.autoencoder_minutes)
    parser.add_argument("--text-minutes", type=float, default=default.text_minutes)
    parser.add_argument("--denoiser-minutes", type=float, default=default.denoiser_minutes)
    parser.add_argument("--scenes", type=int, default=default.scenes, help="cached training scenes")
    parser.add_argument("--captions", type=int, default=default.captions, help="to evaluate on")
    parser.add_argument("--workers", type=int, default=default.workers, help="processes")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--size", choices=list(sizes.SIZES), default=default.size)
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where the models are trained: a card where there is one",
    )
    parser.add_argument("--until", choices=STAGES, default=default.until, help="the last stage")
    run(Plan(**vars(parser.parse_args(arguments))))


if __name__ == "__main__":
    main()
