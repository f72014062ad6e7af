"""Uploads, through huggingface_hub itself, to a Hub on this machine."""

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import pytest

from sid_lsg.export.hub import push
from sid_lsg.messages.errors import UsageError
from tests.helpers.fake_hub import TOKEN, FakeHub, fake_hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with fake_hub() as found:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", found.url)
        ask = huggingface_hub.HfApi.repo_info

        def repo_info(api: Any, repo_id: str, **options: Any) -> Any:
            if repo_id not in found.repositories:
                return ask(api, repo_id, **options)
            return SimpleNamespace(private=found.repositories[repo_id])

        monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)
        yield found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out" / "unet").mkdir(parents=True)
    (tmp_path / "out" / "README.md").write_text("# A card\n")
    (tmp_path / "out" / "mine.safetensors").write_bytes(b"one file")
    (tmp_path / "out" / "unet" / "model.safetensors").write_bytes(b"weights")
    return tmp_path / "out"


def test_a_folder_is_uploaded_as_one_commit(hub: FakeHub, folder: Path) -> None:
    push(folder, "me/mine", private=True)
    assert hub.repositories == {"me/mine": True}
    (commit,) = hub.commits
    digests = {name: hashlib.sha256(name).hexdigest() for name in (b"one file", b"weights")}
    assert commit == {
        "README.md": base64.b64encode(b"# A card\n").decode(),
        "mine.safetensors": digests[b"one file"],
        "unet/model.safetensors": digests[b"weights"],
    }
    assert {hub.uploaded[digest] for digest in digests.values()} == {*digests}


def test_a_repository_that_exists_gets_another_commit(hub: FakeHub, folder: Path) -> None:
    for _ in range(2):
        push(folder, "me/mine", private=False)
    assert hub.repositories == {"me/mine": False}
    assert len(hub.commits) == 2


def test_a_public_repository_gets_nothing_private(hub: FakeHub, folder: Path) -> None:
    push(folder, "me/mine", private=False)
    with pytest.raises(
        UsageError, match=r"^--private true: 'me/mine' exists .* is public"
    ) as found:
        push(folder, "me/mine", private=True)
    assert str(folder) in str(found.value)
    assert len(hub.commits) == 1
    hub.repositories["me/mine"] = True
    push(folder, "me/mine", private=True)
    assert len(hub.commits) == 2


@pytest.mark.parametrize(
    ("failures", "token", "expected"),
    [
        ({}, None, "401"),
        ({"/repos/create": 403}, TOKEN, "403"),
        ({"/commit/": 409}, TOKEN, "409"),
        ({"/preupload/": 404}, TOKEN, "404"),
        ({"/upload/": 0}, TOKEN, ""),
    ],
    ids=["no token", "forbidden", "conflict", "gone", "broken connection"],
)
def test_failures_end_in_one_message(
    hub: FakeHub,
    folder: Path,
    monkeypatch: Any,
    failures: dict[str, int],
    token: str | None,
    expected: str,
) -> None:
    hub.failures = failures
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("time.sleep", lambda _: None)  # between tries
    with pytest.raises(UsageError) as caught:
        push(folder, "me/mine", private=False)
    message = str(caught.value)
    assert message.startswith("--push_to_hub: 'me/mine' could not be uploaded (")
    assert expected in message
    assert "\n" not in message
    assert f"hf upload me/mine {folder}" in message
    assert not hub.commits
    assert len([*folder.rglob("*")]) == 4
