"""The Hugging Face hub: downloads into its cache, or finds there what is needed. Imports it only when it is asked."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from daifuku.errors import ModelNotFound
from daifuku.weights.transfer import Source

_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """One file of a repository, as the hub describes it."""

    repo: str
    revision: str | None
    """As it was asked for."""
    commit: str
    name: str
    num_bytes: int
    sha256: str | None
    """Known of large files."""
    into: str = ""
    """Where it belongs below the folder of a whole model."""


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


def listing(repo: str, revision: str | None) -> list[HubFile]:
    """Every file of a repository, with its size and checksum. Raises ModelNotFound, which says what to do about it."""
    from huggingface_hub import HfApi

    try:
        about = HfApi().model_info(repo, revision=revision, files_metadata=True)
    except Exception as error:
        raise refused(repo, revision, error) from error
    files: list[HubFile] = []
    for each in about.siblings or ():
        name = Path(each.rfilename)
        if name.is_absolute() or ".." in name.parts or "\\" in each.rfilename:
            raise ModelNotFound(f"{repo} has a file outside its own folder ({each.rfilename!r}); do not use it")
        files.append(
            HubFile(
                repo=repo,
                revision=revision,
                commit=about.sha or "main",
                name=each.rfilename,
                num_bytes=each.size or 0,
                sha256=each.lfs.sha256 if each.lfs is not None else None,
            )
        )
    return files


def refused(repo: str, revision: str | None, error: Exception) -> ModelNotFound:
    """What to raise, in the place of the library's own error, about a repository that does not come."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"{constants.ENDPOINT}/{repo}"
    match error:
        case OfflineModeIsEnabled():
            why = f"HF_HUB_OFFLINE is set, so nothing is downloaded. Unset it, or use what {constants.HF_HUB_CACHE} has"
        case GatedRepoError():
            why = f"its publisher asks for consent first: give it at {page}, then `hf auth login` or set HF_TOKEN"
        case RepositoryNotFoundError():
            why = "there is no such repository, or it is private: check the name, or `hf auth login` or set HF_TOKEN"
        case RevisionNotFoundError():
            why = f"it has no revision {revision!r}: see {page}/commits"
        case _:
            why = f"{_first_line(error)}. Check the network and try again; what has come is kept"
    return ModelNotFound(f"{repo} cannot be downloaded: {why}")


def source_of(file: HubFile) -> Source:
    """Where the hub has a file right now. Raises ModelNotFound."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(file.repo, file.name, revision=file.commit)
    try:
        location = get_hf_file_metadata(url).location
    except Exception as error:
        raise refused(file.repo, file.revision, error) from error
    # A token is for the hub alone, and not for whoever stores its large files.
    same = urlsplit(location).netloc == urlsplit(url).netloc
    return Source(url=location, headers=build_hf_headers() if same else {})


def cache_blob(file: HubFile) -> Path:
    """Where the cache keeps the content of a large file."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=file.repo, repo_type="model")
    return Path(constants.HF_HUB_CACHE) / folder / "blobs" / (file.sha256 or "")


def cached(file: HubFile) -> Path | None:
    """The file in the cache, if it is there."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(file.repo, file.name, revision=file.commit)
    return Path(path) if isinstance(path, str) else None


def enter(file: HubFile, folder: Path | None) -> Path:
    """The path of a file in the cache, or in a folder; downloaded first unless its content is there already.

    Raises ModelNotFound.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    try:
        return Path(hf_hub_download(file.repo, file.name, revision=file.revision, local_dir=folder))
    except Exception as error:
        raise refused(file.repo, file.revision, error) from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
