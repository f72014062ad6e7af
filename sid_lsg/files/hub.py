"""Explain why the Hub does not give a file."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import huggingface_hub.constants
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name

# A failed connection, in the HTTP library of the installed huggingface_hub.
_TransportError = import_module(HfHubHTTPError.__mro__[1].__module__.split(".")[0]).TransportError


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
    causes = list(_causes(error))
    # A refusal explains an error about the cache, which the libraries raise afterwards.
    for find in (_known, _refusal, _no_answer):
        for cause in causes:
            if problem := find(cause):
                return problem
    return None


def _known(cause: BaseException) -> HubProblem | None:
    return cause if isinstance(cause, HubProblem) else None


def _refusal(cause: BaseException) -> HubProblem | None:
    """Return the problem of a model that the Hub refuses or does not have; None for others."""
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
    if isinstance(cause, DisabledRepoError):
        return HubProblem("the Hub has disabled this model", "Choose another one.")
    status = _status(cause)
    if status == 401:
        return HubProblem(
            "the Hub does not accept this machine's token (401)",
            "Log in again with `hf auth login`, or remove HF_TOKEN.",
        )
    if status in (403, 451):
        return HubProblem(
            f"the Hub refuses access to it ({status})",
            "Log in with `hf auth login`, with a token that may read this model.",
        )
    return None


def _no_answer(cause: BaseException) -> HubProblem | None:
    """Return the problem of a Hub that cannot be reached or is overloaded; None for others."""
    status = _status(cause)
    if isinstance(cause, LocalEntryNotFoundError | OfflineModeIsEnabled | _TransportError):
        return _unreachable(cause)
    return _unreachable(cause) if status >= 500 or status == 429 else None


def _status(cause: BaseException) -> int:
    """Return the HTTP status of an error's response; 0 if it has none."""
    response = cause.response if isinstance(cause, HfHubHTTPError) else None
    return 0 if response is None else int(response.status_code)


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
