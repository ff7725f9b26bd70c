"""Which models have an original layout, and where their components go in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import vqdq.models.export.latent_diffusion as ldm
from vqdq.models.export.decoded import Decoded
from vqdq.models.export.layout import Piece, Place, pieces
from vqdq.models.export.transformers import aura_places, flux_places, sd3_places
from vqdq.models.sources import Source

Places = Callable[[str], Place | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Original:
    """The original layout of a model.

    Attributes:
        architecture: as GGUF files name it.
        denoiser: where the denoiser's tensors go.
        others: component -> where its tensors go, for those that stand in the same file.
        outer: beginnings of the denoiser's names outside of its blocks: small and sensitive, and in
            the files that people download always in 16 bits.
        apart: components of the folder that programs expect in files of their own.
    """

    architecture: str
    denoiser: Places
    others: dict[str, Places]
    outer: tuple[str, ...]
    apart: tuple[str, ...] = ()

    def pieces(self, source: Source, *, whole: bool) -> Iterator[tuple[Decoded, list[Piece]]]:
        """Yields each component with its original tensors: the denoiser, and the rest if `whole`.

        Raises:
            UserError: a tensor that the original layout has no place for, or damaged weights.
        """
        wanted = {source.denoiser: self.denoiser} | (self.others if whole else {})
        for name, place in wanted.items():
            component = Decoded(source.folder / name)
            yield component, pieces(component.specs, place, name)


def original(source: Source) -> Original | None:
    """Returns the original layout of a model, or None where there is none that programs read."""
    kind, config = source.config.get("_class_name"), source.config
    if kind == "UNet2DConditionModel" and ldm.has_original(config):
        return _latent_diffusion(source)
    if kind == "FluxTransformer2DModel":
        return Original(
            architecture="flux",
            denoiser=flux_places(config),
            others={},
            outer=("img_in", "txt_in", "time_in", "vector_in", "guidance_in", "final_layer"),
            apart=_present(source, "vae", "text_encoder", "text_encoder_2"),
        )
    if kind == "SD3Transformer2DModel":
        known = {
            "vae": ldm.vae_places(_config(source.folder / "vae")),
            "text_encoder": _prefixed("text_encoders.clip_l.transformer.", ldm.clip_places("")),
            "text_encoder_2": _prefixed("text_encoders.clip_g.transformer.", ldm.clip_places("")),
            "text_encoder_3": _prefixed("text_encoders.t5xxl.transformer.", _t5),
        }
        return Original(
            architecture="sd3",
            denoiser=_prefixed(ldm.UNET, sd3_places(config)),
            others={name: known[name] for name in _present(source, *known)},
            outer=("x_embedder", "context_embedder", "t_embedder", "y_embedder", "final_layer"),
        )
    if kind == "AuraFlowTransformer2DModel":
        return Original(
            architecture="aura",
            denoiser=aura_places(config),
            others={},
            outer=("init_x_linear", "cond_seq_linear", "t_embedder", "modF", "final_linear"),
            apart=_present(source, "vae", "text_encoder"),
        )
    return None


def _latent_diffusion(source: Source) -> Original:
    sized = source.config.get("addition_embed_type") == "text_time"
    encoders = _present(source, "text_encoder", "text_encoder_2")
    if sized:
        family = "refiner" if encoders == ("text_encoder_2",) else "sdxl"
        names = {"text_encoder": 0, "text_encoder_2": 1}
    else:  # the text encoder of 2.x comes from OpenCLIP, and its activation tells
        open_clip = _config(source.folder / "text_encoder").get("hidden_act") == "gelu"
        family = "sd2" if open_clip else "sd1"
        names = {"text_encoder": int(open_clip)}
    kinds = (ldm.clip_places, ldm.open_clip_places)
    others = {name: kinds[names[name]](ldm.CLIP[family][names[name]]) for name in encoders}
    if _present(source, "vae"):
        others["vae"] = ldm.vae_places(_config(source.folder / "vae"))
    return Original(
        architecture="sdxl" if sized else "sd1",
        denoiser=ldm.unet_places(source.config),
        others=others,
        outer=("time_embed", "label_emb"),
    )


def _present(source: Source, *names: str) -> tuple[str, ...]:
    return tuple(name for name in names if (source.folder / name / "config.json").is_file())


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return found


def _prefixed(prefix: str, places: Places) -> Places:
    def place(name: str) -> Place | None:
        found = places(name)
        return None if found is None else replace(found, key=prefix + found.key)

    return place


def _t5(name: str) -> Place | None:
    return Place(key="shared.weight" if name == "encoder.embed_tokens.weight" else name)
