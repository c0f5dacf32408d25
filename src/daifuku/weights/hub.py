"""The Hugging Face hub: downloads into its cache, or finds there what is needed. Imports it only when it is asked."""

import re
from collections.abc import Sequence
from pathlib import Path

from daifuku.errors import ModelNotFound

_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_id(text: str) -> bool:
    """Whether a text has the form owner/name."""
    return _ID.fullmatch(text) is not None and not text.startswith((".", "/"))


def download(repo: str, revision: str | None, patterns: Sequence[str], *, cached_only: bool = False) -> Path:
    """The folder of a repository's snapshot, with the files that match the patterns where the repository has them.

    Respects HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE and HF_TOKEN. Without a network the cache is used as it is.
    Raises ModelNotFound with the folder of the cache when neither has the repository.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(
            snapshot_download(repo, revision=revision, allow_patterns=list(patterns), local_files_only=cached_only)
        )
    except (OSError, HFValidationError) as error:
        # An incomplete snapshot may still hold what is needed: the caller checks file by file.
        if (snapshot := getattr(error, "snapshot_path", None)) is not None:
            return Path(snapshot)
        at = "" if revision is None else f" at revision {revision}"
        raise ModelNotFound(
            f"{repo}{at} is not in the cache {constants.HF_HUB_CACHE} and could not be downloaded "
            f"({_first_line(error)}). Where there is a network: {download_command(repo, revision)}"
        ) from error


def download_command(repo: str, revision: str | None) -> str:
    """What to type to fill the cache."""
    return f"hf download {repo}" + ("" if revision is None else f" --revision {revision}")


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
