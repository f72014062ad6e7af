"""Upload an exported folder to the Hub."""

import re
from pathlib import Path

from huggingface_hub import HfApi

from sid_lsg.messages.errors import UsageError


def check_id(repo_id: str) -> None:
    """Check that a Hub id has the form owner/name.

    Raises:
        UsageError: If it does not.
    """
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo_id):
        raise UsageError(f"--push_to_hub: {repo_id!r} is not a Hub id. Give owner/name.")


def push(folder: Path, repo_id: str, private: bool) -> str:
    """Upload a folder as a model, creating the repository if necessary; return its URL.

    Raises:
        UsageError: If the upload fails, or the repository exists and is public although a private
            one is wanted; the folder remains.
    """
    api = HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.repo_info(repo_id).private:  # it existed, and stays as it was
            raise UsageError(
                f"--private true: {repo_id!r} exists on the Hub and is public, so nothing was "
                f"uploaded. The export is complete in {str(folder)!r}: make the repository "
                "private in its settings, or give another --push_to_hub."
            )
        api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message="Export a SiD-LSG generator"
        )
    except UsageError:
        raise
    except Exception as error:  # any error: tell the user that the folder is complete
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"--push_to_hub: {repo_id!r} could not be uploaded ({reason}). The export is complete "
            f"in {str(folder)!r}: log in with `hf auth login`, then `hf upload {repo_id} {folder}`."
        ) from error
    return f"https://huggingface.co/{repo_id}"
