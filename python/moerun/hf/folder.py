"""From what a user names to a local folder: the folder itself, or a repository of the Hugging Face hub."""

from __future__ import annotations

import os
import re
from typing import Any

from moerun.errors import CheckpointError

HUB_OPTIONS = frozenset({"revision", "cache_dir", "token", "local_files_only", "force_download"})

_REPOSITORY_ID = re.compile(r"[\w.-]+/[\w.-]+")
_WANTED_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
_UNWANTED_FILES = ["*/*"]  # folders hold other formats of the same weights (original/, metal/, onnx/)


def checkpoint_folder(path: str | os.PathLike[str], **hub_options: Any) -> str:
    """The folder that `path` names. A repository is taken from the hub's local cache, or downloaded into it.

    `hub_options` (those of HUB_OPTIONS) go to `huggingface_hub.snapshot_download`; a folder needs none.

    Raises
    ------
    moerun.CheckpointError
        Neither a folder nor a repository that is cached or can be fetched.
    """
    name = os.fspath(path)
    if os.path.isdir(name):
        return name
    if os.path.exists(name):
        raise CheckpointError(f"{name} is a file; give the folder that holds config.json and the safetensors")
    if not _REPOSITORY_ID.fullmatch(name):
        raise CheckpointError(f"there is no folder {name}, and it is not a repository id (owner/name) either")

    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(
            name, allow_patterns=_WANTED_FILES, ignore_patterns=_UNWANTED_FILES, **hub_options
        )
    except OSError as error:  # no connection, no such repository, no access
        raise CheckpointError(
            f"there is no folder {name}, and the repository {name} is neither in the Hugging Face cache "
            f"nor could it be fetched: {error}"
        ) from error
