"""A prompt set from a dataset on the hub: one file of it, read like any other file."""

from __future__ import annotations

from dataclasses import replace

from vqdq.errors import UserError
from vqdq.models.prompt_sets import PromptSet, read_prompt_set


def download_prompt_set(reference: str) -> PromptSet:
    """Returns the prompts in a file of a hub dataset, from the cache when there is no connection.

    Args:
        reference: "owner/dataset/file", such as "owner/prompts/data/PartiPrompts.tsv"; the kinds
            of file are those of `read_prompt_set`.

    Raises:
        UserError: not such a reference, offline and not cached, no such dataset or file, no
            permission, or a fault in the file.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HTTPError,
        LocalEntryNotFoundError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
    )

    owner, _, rest = reference.partition("/")
    name, _, file = rest.partition("/")
    if not (owner and name and file):
        raise UserError(
            "is no file of a hub dataset.",
            where=reference,
            remedy='Write "owner/dataset/file.tsv", or name a file on this machine.',
        )
    dataset = f"{owner}/{name}"
    constants.HF_HUB_DISABLE_TELEMETRY = True
    offline = constants.HF_HUB_OFFLINE
    try:
        path = hf_hub_download(dataset, file, repo_type="dataset", local_files_only=offline)
    except GatedRepoError as error:
        raise UserError(
            "the hub asks you to accept this dataset's terms first.",
            where=dataset,
            remedy=f"Accept them at https://huggingface.co/datasets/{dataset}, then run"
            " `hf auth login`.",
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            "the hub has no such dataset.",
            where=dataset,
            remedy="Check the name, or log in with `hf auth login` when it is private.",
        ) from error
    except RemoteEntryNotFoundError as error:
        raise UserError(f'has no file "{file}".', where=dataset) from error
    except (LocalEntryNotFoundError, HTTPError, OSError, ValueError) as error:
        fact = "HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached"
        raise UserError(
            f"is not in the cache, and {fact}.",
            where=reference,
            remedy=f"Run `hf download --repo-type dataset {dataset} {file}` where there is a"
            " connection, and copy the file here.",
        ) from error
    return replace(read_prompt_set(path), name=reference)
