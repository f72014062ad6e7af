"""The command `export`: folders of a run's generator, their model cards, and the Hub."""

import json
import logging
import re
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers.utils.dynamic_modules_utils as dynamic_modules
import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import sid_lsg.export.hub
from sid_lsg.checkpoints.opening import require_checkpoint
from sid_lsg.cli import main
from sid_lsg.commands.export import export
from sid_lsg.export.card import card, write_card
from sid_lsg.export.facts import Facts, facts_of, is_hub_id, teacher_license
from sid_lsg.files.weights import weights_hash
from sid_lsg.generation.trained import load_trained
from sid_lsg.images.pixels import to_uint8
from sid_lsg.messages.errors import UsageError
from sid_lsg.teachers.stable_diffusion import StableDiffusion

PROMPTS = ["a red cat", "two dogs on a log", "a boat", "rain"]
BATCH = 2


@pytest.fixture(scope="module")
def root(small_sd: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that stands for the trainer's machine; no exported file may name it."""
    root = tmp_path_factory.mktemp("machine")
    shutil.copytree(small_sd, root / "tiny")
    (root / "prompts.txt").write_text("\n".join(PROMPTS))
    return root


@pytest.fixture(scope="module")
def run(root: Path) -> Path:
    """Train a two-step generator for two iterations, with scores."""
    options = {
        "seed_everything": 1,
        "model.teacher": root / "tiny",
        "model.num_steps": 2,
        "model.guidance.scale": 2,
        "data.prompts": root / "prompts.txt",
        "data.batch_size": BATCH,
        "data.num_workers": 0,
        "trainer.accelerator": "cpu",
        "trainer.max_steps": 2,
        "trainer.default_root_dir": root / "run",
        "trainer.logger": "false",
        "image_grid.every_n_steps": 2,
        "image_grid.num_images": 2,
        "progress.refresh_rate": 0,
        "metrics.clip": "package:demo/fashion/clip",
        "metrics.num_images": 4,
        "metrics.teacher_steps": 1,
        "metrics.num_steps": "[1]",
        "health.every_n_images": 0,
    }
    lr = [f"--model.optimizer_{name}.init_args.lr=0.01" for name in ("fake", "generator")]
    main(["fit", *(f"--{name}={value}" for name, value in options.items()), *lr])
    return root / "run"


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    export(str(run), str(run.parent / "exported"))
    return run.parent / "exported"


@pytest.fixture(autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any) -> None:
    monkeypatch.setattr(dynamic_modules, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("code")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def front_matter(folder: Path) -> dict[str, Any]:
    _, head, _ = (folder / "README.md").read_text().split("---\n", 2)
    return dict(yaml.safe_load(head))


def snippet(folder: Path) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    return str(code).replace("path/to/this/folder", str(folder))


def executed(code: str) -> Image.Image:
    names: dict[str, Any] = {}
    exec(code, names)
    image = names["image"]
    assert isinstance(image, Image.Image)
    return image


def picture(run: Path, num_steps: int) -> Tensor:
    """Generate the image of the snippets' prompt and seed with this package."""
    loaded = load_trained(require_checkpoint(run))
    teacher = loaded.teacher
    latents = teacher.generate(
        teacher.network, ["a lighthouse at dawn"], [0], loaded.t_init, num_steps
    )
    return to_uint8(teacher.decode(latents))[0].permute(1, 2, 0)


def same(image: Image.Image, expected: Tensor) -> bool:
    pixels = torch.as_tensor(np.array(image))
    assert pixels.shape == expected.shape
    return int((pixels.int() - expected.int()).abs().max()) <= 1


def refused(*args: Any, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        export(*args, **options)
    return str(caught.value)


# ---------------------------------------------------------------------- the folder


@pytest.mark.slow
def test_the_cards_snippet_generates_our_image(run: Path, exported: Path) -> None:
    assert same(executed(snippet(exported)), picture(run, 2))
    assert same(executed(snippet(run / "generator")), picture(run, 2))
    assert not same(executed(snippet(exported)), picture(run, 1))


def test_a_one_step_export_needs_no_remote_code(run: Path, tmp_path: Path) -> None:
    export(str(run / "checkpoints" / "last.ckpt"), str(tmp_path / "one"), num_steps=1)
    code = snippet(tmp_path / "one")
    assert "trust_remote_code" not in code
    assert not [*(tmp_path / "one").rglob("*.py")]
    assert same(executed(code), picture(run, 1))


@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.slow
def test_a_unet_export_works_in_the_teachers_pipeline(
    run: Path, tmp_path: Path, num_steps: int
) -> None:
    folder = tmp_path / "unet"
    export(str(run), str(folder), format="unet", num_steps=num_steps)
    files = {path.name for path in folder.iterdir()}
    assert files == {"README.md", "example.png", "scheduler", "unet"}
    code = snippet(folder).replace("path/to/the/teacher", str(run.parent / "tiny"))
    assert same(executed(code), picture(run, num_steps))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_have_the_requested_dtype(run: Path, tmp_path: Path, dtype: str) -> None:
    folder = tmp_path / "small"
    export(str(run), str(folder), dtype=dtype, num_steps=1)  # type: ignore[arg-type]
    kind = getattr(torch, dtype)
    for path in folder.rglob("*.safetensors"):
        assert {value.dtype for value in load_file(path).values()} == {kind}, path
    code = snippet(folder)
    assert f"torch_dtype=torch.{dtype}" in code
    upcast = code.replace('pipeline.to("cuda")\n', "").replace(f"torch.{dtype}", "torch.float32")
    pixels = np.array(executed(upcast)).astype(int)
    assert np.abs(pixels - picture(run, 1).numpy().astype(int)).mean() < 2


def test_an_overflowing_weight_is_rejected(run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    loaded = load_trained(require_checkpoint(run))
    with torch.no_grad():
        loaded.teacher.network.conv_in.bias[0] = 1e5
    monkeypatch.setattr("sid_lsg.generation.trained.load_trained", lambda *_, **__: loaded)
    message = refused(str(run), str(tmp_path / "small"), dtype="float16")
    assert "--dtype: the weight 'conv_in.bias' is too large for float16" in message
    assert [*tmp_path.iterdir()] == []


def test_a_moved_teacher_can_be_given(run: Path, root: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(root / "tiny", tmp_path / "moved")
    export(str(run), str(tmp_path / "out"), teacher=str(moved))
    assert (tmp_path / "out" / "model_index.json").is_file()
    message = refused(str(run), str(tmp_path / "other"), teacher=str(tmp_path / "none"))
    assert message.startswith("--teacher: there is no folder")


@pytest.mark.parametrize("name", ["exported", "run/generator"])
def test_no_exported_file_names_the_trainers_machine(exported: Path, root: Path, name: str) -> None:
    paths = [path for path in (root / name).rglob("*") if path.is_file()]
    assert len(paths) > 8
    for path in paths:
        assert str(root).encode() not in path.read_bytes(), path


# ---------------------------------------------------------------------- the card


@pytest.mark.parametrize("name", ["exported", "run/generator"])
def test_the_card_states_the_training(exported: Path, root: Path, name: str) -> None:
    head = front_matter(root / name)
    assert head["license"] == "other"
    assert head["library_name"] == "diffusers"
    assert head["pipeline_tag"] == "text-to-image"
    assert {"text-to-image", "diffusers", "sid-lsg", "few-step"} == set(head["tags"])
    assert "base_model" not in head
    text = (root / name / "README.md").read_text()
    assert ModelCard(text).data.to_dict() == head
    for fact in (
        "| teacher | `tiny` |",
        "kappa_1..kappa_4 = 2, 2, 2, 2",
        "| images seen | 4 (2 iterations of 2) |",
        "learning rate 0.01",
        "| precision | 32-true |",
        "2406.01561",
        "@inproceedings{zhou2025guided",
    ):
        assert fact in text, fact


@pytest.mark.parametrize("name", ["exported", "run/generator"])
def test_the_card_shows_the_runs_scores(exported: Path, root: Path, name: str) -> None:
    summary = json.loads((root / "run" / "summary.json").read_text())
    text = (root / name / "README.md").read_text()
    key = "clip_score_fast_4"
    for row, column in (
        ("teacher, 1 step, guidance 2", f"teacher_{key}"),
        ("this, 2 steps", key),
        ("this, 1 step", f"{key}_1_step"),
    ):
        assert f"| {row} | {summary[column]:.4g} |" in text
    assert f"|  | `{key}` |" in text
    assert "`fast`: image embeddings" in text
    assert "`package:demo/fashion/clip`" in text


def test_the_card_omits_scores_of_another_generator(run: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "run", symlinks=True))
    summary = json.loads((copied / "summary.json").read_text()) | {"iterations": 3}
    (copied / "summary.json").write_text(json.dumps(summary))
    digest = weights_hash(load_trained(require_checkpoint(copied)).teacher.network.state_dict())
    common = {"num_steps": 2, "dtype": "float32"}
    for name, found, value in (("a", digest, 12.25), ("b", "other", 99.0)):
        (copied / name).mkdir()
        scores = {"fid_clean256_30k": value}
        report = common | {"weights_sha256": found, "scores": scores}
        (copied / name / "report.json").write_text(json.dumps(report))
    export(str(copied), str(tmp_path / "out"), num_steps=1)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "clip_score_fast_4" not in text
    assert "| this, 2 steps, float32, by `evaluate` | 12.25 |" in text
    assert "| 99 |" not in text
    assert "`clean256`: features of Inception" in text
    assert "| trained with | num_steps 2 |" in text


def facts(**options: Any) -> Facts:
    given = {
        "num_steps": 1,
        "size": (512, 512),
        "latent_shape": (4, 64, 64),
        "prediction_type": "epsilon",
        "tokens": (77, 49407, "<|endoftext|>"),
        "network": ("unet", "UNet2DConditionModel"),
        "scheduler": "EulerDiscreteScheduler",
        "pipeline": "StableDiffusionPipeline",
        "pipeline_options": {"guidance_scale": 0},
    }
    return Facts(**given | options)  # type: ignore[arg-type]


def test_a_teacher_on_the_hub_is_the_base_model(run: Path, tmp_path: Path) -> None:
    config = load_trained(require_checkpoint(run)).record["config"]
    config["model"]["teacher"] = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    write_card(tmp_path, facts(config=config, license="creativeml-openrail-m", model="me/mine"))
    head = front_matter(tmp_path)
    assert head["base_model"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert head["license"] == "creativeml-openrail-m"
    assert "one-step" in head["tags"]
    assert 'from_pretrained("me/mine")' in (tmp_path / "README.md").read_text()
    assert "prompts only, without images" in (tmp_path / "README.md").read_text()
    config["model"]["real_data"] = {"fake_weight": 1.0, "generator_weight": 0.0001}
    write_card(tmp_path, facts(config=config, format="network"))
    assert "with an adversarial term on real images" in (tmp_path / "README.md").read_text()
    assert '"stable-diffusion-v1-5/stable-diffusion-v1-5", unet=unet' in snippet(tmp_path)


def test_a_card_works_without_a_record(small_sd: str) -> None:
    text = card(facts_of(StableDiffusion.from_pretrained(small_sd), 625, 1))
    assert "# SiD-LSG, 1 step" in text
    assert "64 x 64 pixels" in text
    assert "## Scores" not in text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/name", True),
        ("owner/na.me-1_2", True),
        ("package:demo/fashion", False),
        ("/owner/name", False),
        ("./name", False),
        ("owner/name/part", False),
        ("name", False),
        ("", False),
    ],
)
def test_is_hub_id(name: str, expected: bool) -> None:
    assert is_hub_id(name) is expected


def test_an_existing_folder_is_not_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "sd").mkdir(parents=True)
    assert not is_hub_id("models/sd")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\nlicense: openrail++\n---\n# It", "openrail++"),
        ("---\ntags: [a]\n---\n# It", None),
        ("# It", None),
        ("---\nlicense: [a: b\n---\n", None),
        (None, None),
    ],
)
def test_a_teachers_licence_is_read_from_its_card(
    tmp_path: Path, text: str | None, expected: str | None
) -> None:
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    assert teacher_license(str(tmp_path)) == expected


def test_the_licence_is_unknown_when_the_hub_is_unreachable(monkeypatch: Any) -> None:
    def fail(*_: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("sid_lsg.export.facts.hf_hub_download", fail)
    assert teacher_license("nobody/nothing-of-this-name", ask_hub=True) is None
    assert teacher_license("nobody/nothing-of-this-name") is None
    assert teacher_license("package:demo/fashion") == "apache-2.0"


def test_the_licence_of_a_teacher_on_the_hub_is_requested(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: openrail++\n---\n")
    asked = []
    monkeypatch.setattr(
        "sid_lsg.export.facts.hf_hub_download",
        lambda *names: asked.append(names) or str(tmp_path / "README.md"),
    )
    assert teacher_license("owner/name", ask_hub=True) == "openrail++"
    assert asked == [("owner/name", "README.md")]


def test_a_licence_can_be_set(run: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        export(str(run), str(tmp_path / "out"), license="mit")
    assert not [w for w in caught if "licence" in str(w.message)]
    assert front_matter(tmp_path / "out")["license"] == "mit"
    with pytest.warns(UserWarning, match=r"licence is not known\. Give it with --license"):
        export(str(run), str(tmp_path / "out"), overwrite=True)


# ---------------------------------------------------------------------- errors


def test_an_input_folder_is_not_replaced(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(str(run), str(out))
    shutil.copytree(run, out / "run")
    message = refused(str(out / "run"), str(out), overwrite=True)
    assert "would be replaced, but it contains --ckpt_path" in message
    message = refused(str(run), str(out), teacher=str(out), overwrite=True)
    assert "would be replaced, but it contains --teacher" in message


def test_a_nonempty_output_is_rejected(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").touch()
    for overwrite in (False, True):
        message = refused(str(run), str(out), overwrite=overwrite)
        assert re.match(r"--output: '.*out' is not empty: it holds 'thesis.txt'\. Choose", message)
    (out / "thesis.txt").unlink()
    (out / "unet").mkdir()
    (out / "unet" / "model.py").touch()  # could be a program's or a teacher's folder
    assert "only an export can be replaced" in refused(str(run), str(out), overwrite=True)
    shutil.rmtree(out)
    export(str(run), str(out))
    (out / "model_index.json").write_text("earlier")
    assert "or give --overwrite" in refused(str(run), str(out))
    assert (out / "model_index.json").read_text() == "earlier"
    export(str(run), str(out), overwrite=True, num_steps=1)
    assert "earlier" not in (out / "model_index.json").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_leftovers_of_a_killed_command_are_removed(run: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.123.tmp" / "unet").mkdir(parents=True)
    (tmp_path / ".other.123.tmp").mkdir()
    export(str(run), str(tmp_path / "out"), format="unet")
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".other.123.tmp"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "--num_steps must be at least 1, got 0"),
        ({"num_steps": 626}, "--num_steps must be at most 625, the generator's timestep, got 626"),
        ({"format": "onnx", "dtype": "float16"}, "--dtype must be float32 with --format onnx"),
        ({"push_to_hub": "mine"}, "--push_to_hub: 'mine' is not a Hub id. Give owner/name."),
        ({"push_to_hub": "a/b/c"}, "--push_to_hub: 'a/b/c' is not a Hub id"),
    ],
)
def test_impossible_options_are_rejected(
    run: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    assert refused(str(run), str(tmp_path / "out"), **options).startswith(message)
    assert [*tmp_path.iterdir()] == []


def test_a_missing_checkpoint_is_rejected(tmp_path: Path) -> None:
    message = refused(str(tmp_path / "none.ckpt"), str(tmp_path / "out"))
    assert message.startswith("--ckpt_path: there is no checkpoint")
    assert [*tmp_path.iterdir()] == []


def test_onnx_without_its_extra_is_rejected(run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    message = refused(str(run), str(tmp_path / "out"), format="onnx")
    assert "--format onnx needs onnxscript: pip install 'sid-lsg[onnx]'." in message


# ---------------------------------------------------------------------- the Hub


class Hub:
    """Stand in for the Hub's API."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.failure = failure

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))
        if self.failure:
            raise self.failure

    def repo_info(self, repo_id: str) -> Any:
        return SimpleNamespace(private=self.calls[0][1]["private"])

    def upload_folder(self, **options: Any) -> None:
        assert (Path(options["folder_path"]) / "model_index.json").is_file()
        self.calls.append(("upload_folder", options))


def test_an_export_is_uploaded(run: Path, tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    hub = Hub()
    monkeypatch.setattr(sid_lsg.export.hub, "HfApi", lambda: hub)
    out = tmp_path / "out"
    with caplog.at_level(logging.INFO):
        export(str(run), str(out), num_steps=1, push_to_hub="me/mine", private=True)
    (_, created), (_, uploaded) = hub.calls
    assert created == {"repo_id": "me/mine", "private": True, "exist_ok": True}
    assert (uploaded["repo_id"], uploaded["folder_path"]) == ("me/mine", out)
    assert 'from_pretrained("me/mine")' in (out / "README.md").read_text()
    assert "https://huggingface.co/me/mine" in caplog.text


@pytest.mark.parametrize(
    "failure",
    [
        huggingface_hub.errors.LocalTokenNotFoundError("no token\nsecond line"),
        ConnectionError("no network"),
        RuntimeError(),
    ],
)
def test_a_failed_upload_keeps_the_folder(
    run: Path, tmp_path: Path, monkeypatch: Any, failure: Exception
) -> None:
    monkeypatch.setattr(sid_lsg.export.hub, "HfApi", lambda: Hub(failure))
    out = tmp_path / "out"
    message = refused(str(run), str(out), num_steps=1, push_to_hub="me/mine")
    reason = str(failure).split("\n")[0] or "RuntimeError"
    assert message.startswith(f"--push_to_hub: 'me/mine' could not be uploaded ({reason}).")
    assert f"hf upload me/mine {out}" in message
    assert DiffusionPipeline.from_pretrained(out) is not None
