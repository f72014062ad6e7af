"""The app's page in a real browser: `make browser`, which installs Debian's chromium.

    APP_MODEL=runs/demo/generator APP_PICTURE=docs/app.png make browser

uses another model than the untrained one, and saves a screenshot of the page for the README.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, Error, Page, expect, sync_playwright

from sid_lsg.export.folder import save_pipeline
from sid_lsg.generation.models import load_model
from sid_lsg.images.pixels import to_uint8
from sid_lsg.teachers.stable_diffusion import StableDiffusion
from tests.helpers.app_server import Served, served

pytestmark = pytest.mark.browser

TEACHER = "package:demo/fashion"
PROMPT = "an orange ankle boot on a navy background"
SLOW_MS = 120_000

PIXELS = """image => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    return Array.from(context.getImageData(0, 0, canvas.width, canvas.height).data);
}"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the requested generator, or an untrained one."""
    if model := os.environ.get("APP_MODEL"):
        return model
    folder = tmp_path_factory.mktemp("generator")
    teacher = StableDiffusion.from_pretrained(TEACHER)
    save_pipeline(teacher, teacher.network, folder, 625)
    return str(folder)


@pytest.fixture(scope="module")
def server(exported: str) -> Iterator[Served]:
    with served("--model", exported, "--teacher", TEACHER) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    assert path, "there is no chromium; `make browser` installs it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, server: Served) -> Iterator[Page]:
    """Load the page. It must make no requests to other hosts and raise no error."""
    page = browser.new_page(viewport={"width": 1180, "height": 900})
    asked: list[str] = []
    errors: list[Error] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(error))
    page.add_init_script(
        "window.refused = [];"
        "addEventListener('securitypolicyviolation', event => refused.push(event.blockedURI))"
    )
    page.set_default_timeout(SLOW_MS)
    expect.set_options(timeout=SLOW_MS)
    page.goto(server.url)
    yield page
    foreign = [url for url in asked if not url.startswith((server.url, "data:", "blob:"))]
    assert asked
    assert not foreign
    assert page.evaluate("refused") == []
    assert not errors
    page.close()


def generate(page: Page, prompt: str, seed: int, images: int) -> None:
    """Fill in the form and press the button."""
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_label("Seed of the first image").fill(str(seed))
    page.get_by_label("number input for Images").fill(str(images))
    page.get_by_role("button", name="Generate").click()


def shown(page: Page, name: str, images: int) -> torch.Tensor:
    """Wait for a panel's images and return the pixels that the browser drew [B, 3, H, W]."""
    found = page.locator(f"#{name} img")
    expect(found).to_have_count(images)
    drawn = [torch.tensor(image.evaluate(PIXELS)).view(-1, 4)[:, :3] for image in found.all()]
    side = round(len(drawn[0]) ** 0.5)
    return torch.stack([pixels.view(side, side, 3).permute(2, 0, 1) for pixels in drawn])


def differ(pixels: torch.Tensor, images: torch.Tensor) -> int:
    """Return the largest difference to the sampler's images, in gray levels."""
    return int((pixels.int() - to_uint8(images).int()).abs().max())


def test_student_and_teacher_are_shown_side_by_side(page: Page, exported: str) -> None:
    generate(page, PROMPT, seed=0, images=4)
    student, teacher = shown(page, "student", 4), shown(page, "teacher", 4)
    seeds = [0, 1, 2, 3]
    model = load_model(exported)
    assert differ(student, model.sample([PROMPT] * 4, seeds)) <= 1
    beside = load_model(TEACHER, "ddim", num_steps=25, guidance=1.5)
    assert differ(teacher, beside.sample([PROMPT] * 4, seeds)) <= 1
    assert differ(student, beside.sample([PROMPT] * 4, seeds)) > 1

    each = r"[\d.]+ (ms|s)"
    times = rf"{each} per image, {each} in all"
    expect(page.locator("#student")).to_contain_text(re.compile(rf"1 step.*{times}"))
    settings = r"25 steps, guidance 1\.5 \(50 network evaluations\)"
    ratio = rf"{settings}.*{times}: [\d.]+ times the student's"
    expect(page.locator("#teacher")).to_contain_text(re.compile(ratio))
    image = page.locator("#student img").first
    assert image.evaluate("i => getComputedStyle(i).imageRendering") == "pixelated"
    assert image.evaluate("i => i.getBoundingClientRect().width") == 192
    if picture := os.environ.get("APP_PICTURE"):
        page.mouse.move(0, 0)
        page.wait_for_timeout(1000)
        page.screenshot(path=picture, full_page=True)


def test_downloads_have_the_exact_pixels(page: Page, exported: str, tmp_path: Path) -> None:
    generate(page, PROMPT, seed=41, images=2)
    pixels = shown(page, "student", 2)
    with page.expect_download() as download:
        page.locator("#student a").nth(1).click()
    assert download.value.suggested_filename == "student-42.png"
    download.value.save_as(tmp_path / "saved.png")
    with Image.open(tmp_path / "saved.png") as saved:
        assert saved.text == {"prompt": PROMPT, "seed": "42", "model": exported}  # type: ignore[attr-defined]
        assert saved.size == (32, 32)
        assert torch.equal(torch.tensor(list(saved.tobytes())), pixels[1].permute(1, 2, 0).ravel())


def test_an_empty_prompt_shows_a_message(page: Page) -> None:
    generate(page, "  ", seed=0, images=1)
    expect(page.get_by_text("The prompt is empty. Describe")).to_be_visible()
    generate(page, PROMPT, seed=-1, images=1)
    expect(page.get_by_text("Seed: give a whole number from 0 to")).to_be_visible()
    assert page.locator("#student img").count() == 0


def test_the_truncated_part_of_a_prompt_is_shown_as_text(page: Page) -> None:
    odd = "<img src=x onerror=alert(1)> ${value} {{value}} {{#each}} `end`"
    generate(page, "a red coat " * 10 + odd, seed=0, images=1)
    notice = page.locator("#notice")
    expect(notice).to_contain_text("Not seen by the student and the teacher")
    expect(notice).to_contain_text("${value} {{value}} {{#each}} `end`")
    assert notice.locator("img").count() == 0
    shown(page, "teacher", 1)


def test_examples_and_seeds_can_be_clicked(page: Page) -> None:
    page.get_by_role("button", name="a red coat on a navy background").click()
    expect(page.get_by_label("Prompt")).to_have_value("a red coat on a navy background")
    page.get_by_role("button", name="Another seed").click()
    expect(page.get_by_label("Seed of the first image")).not_to_have_value("0")
    page.get_by_label("Prompt").press("Enter")
    shown(page, "student", 4)


def test_stop_ends_a_job_and_the_next_one_runs(page: Page) -> None:
    page.get_by_label("number input for Teacher's steps").fill("40")
    generate(page, PROMPT, seed=0, images=16)
    page.locator("#teacher img").first.wait_for()
    with page.expect_response(re.compile("/cancel")):  # after the current image is finished
        page.get_by_role("button", name="Stop").click()
    made = page.locator("#teacher img").count()
    page.wait_for_timeout(2000)
    assert page.locator("#teacher img").count() == made < 16
    generate(page, PROMPT, seed=0, images=1)
    shown(page, "student", 1)
    shown(page, "teacher", 1)
