"""Models by hub id: only safetensors are fetched, no telemetry is sent, offline says what to do."""

from __future__ import annotations

from pathlib import Path

from vqdq.errors import UserError


def download(model: str) -> Path:
    """Returns the local snapshot of a hub id, from the cache when there is no connection.

    Raises:
        UserError: offline and not cached, no such model, no permission, or no safetensors in it.
    """
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    constants.HF_HUB_DISABLE_TELEMETRY = True
    offline = constants.HF_HUB_OFFLINE
    try:
        return Path(
            DiffusionPipeline.download(model, use_safetensors=True, local_files_only=offline)
        )
    except GatedRepoError as error:
        raise UserError(
            "the hub asks you to accept this model's terms first.",
            where=model,
            remedy=f"Accept them at https://huggingface.co/{model}, then run `hf auth login`.",
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            "the hub has no such model.",
            where=model,
            remedy="Check the name, or log in with `hf auth login` when it is private.",
        ) from error
    except (LocalEntryNotFoundError, HTTPError, OSError, ValueError) as error:
        raise UserError(
            "there is no such folder or cached model here, and the hub cannot be reached."
            if not offline
            else "there is no such folder or cached model here, and HF_HUB_OFFLINE is set.",
            where=model,
            remedy=f"Run `hf download {model}` where there is a connection and copy the folder "
            'here, or use "demo" or a local folder.',
        ) from error
