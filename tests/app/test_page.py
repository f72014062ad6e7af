"""The app: checks of its inputs, its panels, and the running server."""

import base64
import io
import re
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image

from sid_lsg.app.panels import (
    MOST_SEED,
    check_number,
    check_prompt,
    show_cuts,
    show_shots,
    show_time,
    take,
)
from sid_lsg.commands.app import _listen, app
from sid_lsg.export.folder import save_pipeline
from sid_lsg.generation.models import ImageModel, load_model
from sid_lsg.images.pixels import to_uint8
from sid_lsg.messages.errors import UsageError
from sid_lsg.teachers.stable_diffusion import StableDiffusion
from tests.helpers.app_server import Served, served

PROMPT = "a red cat on a log"
LONG = "a cat " * 50 + "<script>alert(1)</script> ${value} {{value}}"


@pytest.fixture(scope="module")
def exported(small_sd: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return an exported, untrained generator."""
    folder = tmp_path_factory.mktemp("generator")
    teacher = StableDiffusion.from_pretrained(small_sd)
    save_pipeline(teacher, teacher.network, folder, 600)
    return str(folder)


@pytest.fixture(scope="module")
def server(exported: str, small_sd: str) -> Iterator[Served]:
    """Start the app; the last test of this file ends it."""
    with served("--model", exported, "--teacher", small_sd) as running:
        yield running


def pictures(panel: str) -> list[Image.Image]:
    """Return a panel's images, which must equal those of its download links."""
    shown, saved = (
        re.findall(rf'{attribute}="data:image/png;base64,([^"]+)"', panel)
        for attribute in ("src", "href")
    )
    assert shown == saved
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in shown]


def same(pictures: list[Image.Image], model: ImageModel, prompt: str, seeds: list[int]) -> bool:
    """Return whether images are those of the sampler, up to one gray level."""
    expected = to_uint8(model.one_by_one().sample([prompt] * len(seeds), seeds))
    found = np.stack([np.asarray(picture) for picture in pictures]).transpose(0, 3, 1, 2)
    return bool((torch.from_numpy(found).int() - expected.int()).abs().max() <= 1)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [("", "empty"), ("  \n", "empty"), (None, "empty"), (3, "empty"), ("x" * 2001, "2001"),
     ("a \ud800 cat", "broken")],
)  # fmt: skip
def test_invalid_prompts_are_rejected(prompt: object, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_prompt(prompt)


def test_a_prompt_is_stripped_as_by_generate() -> None:
    assert check_prompt("  a cat,  two dogs \n") == "a cat,  two dogs"
    assert len(check_prompt("x" * 2000)) == 2000


@pytest.mark.parametrize(
    "value",
    [-1, MOST_SEED + 1, 1.5, float("nan"), float("inf"), 10**400, "7", None, True, [1]],
)
def test_invalid_numbers_are_rejected(value: object) -> None:
    with pytest.raises(UsageError, match=r"Seed: give a whole number from 0 to 4294967295, got"):
        check_number("Seed", value, 0, MOST_SEED)


def test_valid_numbers_are_accepted() -> None:
    assert [check_number("Seed", n, 0, MOST_SEED) for n in (0, 7.0, MOST_SEED)] == [0, 7, MOST_SEED]
    assert check_number("Guidance", 1.5, 0, 15, whole=False) == 1.5
    with pytest.raises(UsageError, match="a number from 0 to 15"):
        check_number("Guidance", float("nan"), 0, 15, whole=False)


def test_an_image_equals_the_samplers_and_names_prompt_and_seed(exported: str) -> None:
    model = load_model(exported)
    shot = take(model, PROMPT, 7)
    picture = Image.open(io.BytesIO(shot.png))
    assert same([picture], model, PROMPT, [7])
    assert picture.text == {"prompt": PROMPT, "seed": "7", "model": exported}  # type: ignore[attr-defined]
    assert shot.seconds > 0


def test_a_nonfinite_image_is_rejected() -> None:
    model = ImageModel(
        lambda prompts, seeds: torch.full((1, 3, 4, 4), torch.nan), {"dtype": "float16"}, 1, str
    )
    with pytest.raises(UsageError, match="seed 3 is not finite in float16"):
        take(model, PROMPT, 3)


def test_small_images_are_enlarged_by_an_integer_factor(exported: str) -> None:
    model = load_model(exported)
    shot = take(model, PROMPT, 0)
    for width, shown in ((32, 192), (50, 200), (192, 192), (512, 512)):
        panel = show_shots("student", model, [shot._replace(width=width)], 1)
        assert f'width="{shown}"' in panel
        assert ("sid-pixels" in panel) == (width < 192)


def test_times_are_shown_per_image_and_in_total(exported: str) -> None:
    model = load_model(exported, num_steps=2)
    shots = [take(model, PROMPT, 0)._replace(seconds=seconds) for seconds in (0.1, 0.3)]
    panel = show_shots("teacher", model, shots, 2, student_seconds=0.05)
    assert "<b>200 ms</b> per image, 400 ms in all: 4 times the student's" in panel
    assert "2 steps (2 network evaluations)" in panel
    assert "2 of 3 images, <b>200 ms</b>" in show_shots("student", model, shots, 3)
    assert [show_time(t) for t in (0.0123, 0.9994, 0.9996, 61.239)] == [
        "12 ms", "999 ms", "1.00 s", "61.24 s",
    ]  # fmt: skip


def test_truncated_text_is_shown_and_escaped(exported: str) -> None:
    model = load_model(exported)
    assert show_cuts({"student": model}, PROMPT) == ""
    warning = show_cuts({"student": model, "teacher": model}, LONG)
    assert "Not seen by the student and the teacher" in warning
    assert not set("${}`") & set(re.sub(r"&#\d+;", "", warning))
    assert "<script" not in warning


def test_unusable_ports_and_hosts_are_rejected() -> None:
    with _listen("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(UsageError, match=f"--port: {port} is in use on 127.0.0.1. Give"):
            _listen("127.0.0.1", port)
    with pytest.raises(UsageError, match="--host, --port: cannot listen on '198.51.100.1'"):
        _listen("198.51.100.1", 0)
    with pytest.raises(UsageError, match="--port must be 0 to 65535"):
        _listen("127.0.0.1", 65536)


def test_missing_gradio_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "sid_lsg.app.page", raising=False)
    with pytest.raises(UsageError, match=r"^app needs gradio: pip install 'sid-lsg\[app\]'\.$"):
        app("nowhere")


@pytest.mark.slow
def test_the_server_listens_only_on_this_machine(server: Served) -> None:
    port = int(server.url.rpartition(":")[2])
    with socket.socket() as other:  # connects if the server listens on all addresses
        assert other.connect_ex(("127.0.0.2", port)) != 0
    with urllib.request.urlopen(server.url) as answer:
        policy, page = answer.headers["Content-Security-Policy"], answer.read().decode()
    assert "default-src 'self'" in policy
    assert "*" not in policy
    assert "://" not in policy
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=\W?(https?:)?//", page)


@pytest.mark.slow
def test_the_server_returns_the_samplers_images(
    server: Served, exported: str, small_sd: str
) -> None:
    client = Client(server.url, verbose=False, analytics_enabled=False)
    notice, student, teacher = client.predict(PROMPT, 5, 3, 2, 2, 3.0, api_name="/generate")
    assert not notice
    assert same(pictures(student), load_model(exported, num_steps=2), PROMPT, [5, 6, 7])
    beside = load_model(small_sd, "ddim", num_steps=2, guidance=3.0)
    assert same(pictures(teacher), beside, PROMPT, [5, 6, 7])
    notice, *_ = client.predict(LONG, MOST_SEED, 1, 1, 1, 1.0, api_name="/generate")
    assert "Not seen by the student and the teacher" in notice


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({0: " "}, "The prompt is empty"),
        ({0: "x" * 2001}, "2001 characters"),
        ({1: "seven"}, "Seed: give a whole number"),
        ({1: -1}, "Seed: give a whole number from 0 to 4294967295"),
        ({1: MOST_SEED, 2: 2}, "Seed: give a whole number from 0 to 4294967294"),
        ({2: 17}, "Images: give a whole number from 1 to 16, got 17"),
        ({2: 0}, "Images"),
        ({2: 1.5}, "Images: give a whole number"),
        ({3: 9}, "The student's steps: give a whole number from 1 to 8"),
        ({4: 101}, "The teacher's steps: give a whole number from 1 to 100"),
        ({5: 15.1}, "The teacher's guidance: give a number from 1 to 15"),
    ],
)
def test_the_server_rejects_values_out_of_range(server: Served, change: dict, said: str) -> None:
    client = Client(server.url, verbose=False, analytics_enabled=False)
    fields = {0: PROMPT, 1: 0, 2: 1, 3: 1, 4: 1, 5: 1.0} | change
    with pytest.raises(AppError, match=said):
        client.predict(*fields.values(), api_name="/generate")


@pytest.mark.slow
def test_the_server_rejects_uploads(server: Served) -> None:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\na\r\n--x--\r\n'
    )
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    for name in ("upload", "process_recording"):
        request = urllib.request.Request(f"{server.url}/gradio_api/{name}", body, headers)
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(request)


@pytest.mark.slow
def test_ctrl_c_ends_the_server_during_a_job(server: Served) -> None:
    """It stops at once, with the conventional exit status and one line."""
    client = Client(server.url, verbose=False, analytics_enabled=False)
    job = client.submit(PROMPT, 0, 4, 1, 100, 3.0, api_name="/generate")
    while len(job.outputs()) < 5:  # then the slow teacher starts
        time.sleep(0.05)
    server.process.send_signal(signal.SIGINT)
    start = time.monotonic()
    output, _ = server.process.communicate(timeout=20)
    assert server.process.returncode == 130
    assert output == f"interrupted: the page at {server.url} is closed.\n"
    assert time.monotonic() - start < 10
