"""Explain why the Hub does not give a file."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name


class HubProblem(ValueError):
    """The Hub does not give a file, for a reason that does not depend on the file.

    Attributes:
        remedy: What to do, as a sentence.
    """

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(found)
        self.remedy = remedy


def hub_problem(error: BaseException) -> HubProblem | None:
    """Return what an error, or one that caused it, says of the Hub; None if nothing."""
    for cause in _causes(error):
        if isinstance(cause, HubProblem):
            return cause
        if isinstance(cause, GatedRepoError):
            return HubProblem(
                "the Hub gives it only to people who accepted its terms",
                "Accept them on the model's page, and log in with `hf auth login`.",
            )
        if isinstance(cause, RepositoryNotFoundError):
            return HubProblem(
                "the Hub has no such model, or it is private",
                "Check the id; for a private model, log in with `hf auth login`.",
            )
        if isinstance(cause, RevisionNotFoundError):
            return HubProblem("the Hub has no such revision of it", "Check the revision.")
        if isinstance(cause, LocalEntryNotFoundError | OfflineModeIsEnabled):
            return _unreachable(cause)
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            status = cause.response.status_code
            if status >= 500 or status == 429:
                return _unreachable(cause)
    return None


def is_cached(repo: str) -> bool:
    """Return True if the cache holds files of a model on the Hub."""
    folder = repo_folder_name(repo_id=repo, repo_type="model")
    return any(Path(huggingface_hub.constants.HF_HUB_CACHE, folder).glob("snapshots/*/*"))


def _unreachable(error: BaseException) -> HubProblem:
    """Return the problem of a Hub that does not answer, and of a cache without the file."""
    causes = list(_causes(error))
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
        why = "HF_HUB_OFFLINE is set"
    else:
        why = (str(causes[-1]).strip().splitlines() or [type(causes[-1]).__name__])[0]
    cache = huggingface_hub.constants.HF_HUB_CACHE
    return HubProblem(
        f"the Hub cannot be reached: {why}; the cache {cache!r} does not hold it",
        "Check the connection, or download it elsewhere with `hf download`.",
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that caused it."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
