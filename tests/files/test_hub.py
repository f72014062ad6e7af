"""Each answer of the Hub becomes one message, with what is wrong and what to do."""

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from sid_lsg.files.hub import hub_problem, is_cached
from sid_lsg.messages.errors import UsageError
from sid_lsg.teachers import families

# The HTTP library of this release.
http: Any = import_module(HfHubHTTPError.__mro__[1].__module__.split(".")[0])
Answer = Callable[[Callable[[Any], Any]], None]


@pytest.fixture
def answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Answer]:
    """Return a function that sets what the Hub answers to a request; nothing is connected."""
    before = huggingface_hub.utils._http._GLOBAL_CLIENT_FACTORY
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between attempts
    monkeypatch.chdir(tmp_path)

    def set_answer(handler: Callable[[Any], Any]) -> None:
        transport = http.MockTransport(handler)
        huggingface_hub.set_client_factory(lambda: http.Client(transport=transport))

    yield set_answer
    huggingface_hub.set_client_factory(before)


def refusal(revision: str | None = None) -> str:
    """Return the message for a teacher on the Hub."""
    with pytest.raises(UsageError) as caught:
        families.load("owner/name", revision=revision)
    return str(caught.value)


@pytest.mark.parametrize(
    ("status", "headers", "found", "remedy"),
    [
        (401, {"X-Error-Code": "GatedRepo"}, "only to people who accepted its terms", "auth login"),
        (403, {"X-Error-Code": "GatedRepo"}, "only to people who accepted its terms", "auth login"),
        (401, {"X-Error-Code": "RepoNotFound"}, "no such model, or it is private", "Check the id"),
        (404, {"X-Error-Code": "RepoNotFound"}, "no such model, or it is private", "Check the id"),
        (401, {}, "no such model, or it is private", "Check the id"),
        (
            401,
            {"X-Error-Message": "Invalid credentials in Authorization header"},
            "does not accept this machine's token (401)",
            "remove HF_TOKEN",
        ),
        (403, {}, "refuses access to it (403)", "a token that may read this model"),
        (
            403,
            {"X-Error-Message": "Access to this resource is disabled."},
            "has disabled this model",
            "Choose another one",
        ),
        (451, {}, "refuses access to it (451)", "a token that may read this model"),
        (404, {"X-Error-Code": "RevisionNotFound"}, "no such revision", "Check the revision"),
        (429, {}, "cannot be reached: ", "Check the connection"),
        (500, {}, "cannot be reached: ", "Check the connection"),
        (503, {}, "cannot be reached: ", "Check the connection"),
    ],
)
def test_a_refused_model_is_explained(
    answer: Answer, status: int, headers: dict[str, str], found: str, remedy: str
) -> None:
    answer(lambda request: http.Response(status, headers=headers, request=request))
    message = refusal()
    assert message.startswith("--model.teacher: could not load 'owner/name' (")
    assert found in message
    assert remedy in message
    assert "\n" not in message


@pytest.mark.parametrize("kind", ["ConnectError", "ConnectTimeout", "ReadTimeout", "ProxyError"])
def test_an_unreachable_hub_is_said_with_its_reason_and_the_cache(
    answer: Answer, kind: str, tmp_path: Path
) -> None:
    def fail(request: Any) -> Any:
        raise getattr(http, kind)("no route to huggingface.co", request=request)

    answer(fail)
    message = refusal()
    assert "the Hub cannot be reached: no route to huggingface.co; the cache" in message
    assert str(tmp_path / "cache") in message


def test_a_model_without_an_index_is_not_a_problem_of_the_hub(answer: Answer) -> None:
    missing = {"X-Error-Code": "EntryNotFound"}
    answer(lambda request: http.Response(404, headers=missing, request=request))
    message = refusal()
    assert "could not load the" in message
    assert "the Hub " not in message


def test_the_most_specific_cause_is_told(tmp_path: Path) -> None:
    """The libraries report a file that is not in the cache after any error."""
    request = http.Request("GET", "https://huggingface.co/owner/name")
    refused = HfHubHTTPError("no", response=http.Response(403, request=request))
    later = LocalEntryNotFoundError("it is not in the cache")
    later.__cause__ = refused
    last = OSError("cannot load")
    last.__cause__ = later
    assert "refuses access" in str(hub_problem(last))
    assert "cannot be reached" in str(hub_problem(LocalEntryNotFoundError("not cached")))
    for other in (OSError("disk"), ValueError("config"), KeyError("unet")):
        assert hub_problem(other) is None
    refused.__context__ = last  # a cycle
    assert hub_problem(last) is not None


def test_a_cached_model_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    assert not is_cached("owner/name")
    (snapshot / "model_index.json").write_text("{}")
    assert is_cached("owner/name")
    assert not is_cached("owner/other")
