"""Families are found by a model's index, and a second family works in every command."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers.utils.dynamic_modules_utils as dynamic_modules
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sid_lsg.checkpoints.opening import require_checkpoint
from sid_lsg.cli import main
from sid_lsg.commands.estimate import estimate
from sid_lsg.commands.evaluate import evaluate
from sid_lsg.commands.export import export
from sid_lsg.commands.generate import generate
from sid_lsg.export.exported import Exported, exported, read_exported
from sid_lsg.files.sources import locate
from sid_lsg.generation.models import load_model
from sid_lsg.generation.trained import load_trained
from sid_lsg.messages.errors import UsageError
from sid_lsg.networks.initial import load_network
from sid_lsg.networks.memory import checkpoint_gradients
from sid_lsg.teachers import families
from sid_lsg.teachers.stable_diffusion import StableDiffusion
from tests.helpers.fake_family import (
    REGISTERED,
    FakeFamily,
    FakePipeline,
    FakeTransformer,
    save_fake,
    seeded,
)  # fmt: skip

PROMPTS = ["a red cat", "two dogs running", "a blue bird", "the moon"]
SEEDS = [3, 0, 7, 1]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the fake family with the one line that a family needs outside its file."""
    monkeypatch.setitem(families.FAMILIES, "FakePipeline", REGISTERED)


@pytest.fixture(autouse=True)
def modules_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any) -> None:
    """Let diffusers copy the code that it runs to a temporary folder."""
    monkeypatch.setattr(dynamic_modules, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("code")))


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_fake(tmp_path_factory.mktemp("fake") / "model")


def fit(fake: str, root: Path, steps: int, *more: str) -> None:
    prompts = root.parent / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    options = {
        "seed_everything": 1,
        "model.teacher": fake,
        "model.t_init": 999,
        "model.num_steps": 2,
        "model.guidance.scale": 2,
        "data.prompts": prompts,
        "data.batch_size": 2,
        "data.num_workers": 0,
        "trainer.accelerator": "cpu",
        "trainer.max_steps": steps,
        "trainer.default_root_dir": root,
        "trainer.logger": "false",
        "checkpoint.every_n_steps": 1,
        "image_grid.every_n_steps": 2,
        "image_grid.num_images": 2,
        "progress.refresh_rate": 0,
        "metrics.clip": "package:demo/fashion/clip",
        "metrics.num_images": 4,
        "metrics.teacher_steps": 2,
        "health.every_n_images": 0,
    }
    lr = [f"--model.optimizer_{name}.init_args.lr=0.01" for name in ("fake", "generator")]
    main(["fit", *(f"--{name}={value}" for name, value in options.items()), *lr, *more])


@pytest.fixture(scope="module")
def run(fake: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run of two iterations, with image grids, scores and an export."""
    root = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(families.FAMILIES, "FakePipeline", REGISTERED)
        fit(fake, root, 2)
    return root


def weights(root: Path) -> dict[str, Tensor]:
    return load_file(root / "generator" / "transformer" / "diffusion_pytorch_model.safetensors")


# ---------------------------------------------------------------------- a second family


def test_the_family_is_trained(fake: str, run: Path) -> None:
    before = families.load(fake).network.state_dict()
    after = weights(run)
    assert after.keys() == before.keys()
    assert all(not torch.equal(value, before[name]) for name, value in after.items())
    assert len(list((run / "grids").iterdir())) == 2
    summary = json.loads((run / "summary.json").read_text())
    assert summary["iterations"] == 2
    assert "clip_score_fast_4" in summary
    assert (run / "comparison.png").is_file()


@pytest.mark.slow
def test_the_family_is_resumed(fake: str, run: Path, tmp_path: Path) -> None:
    """One iteration and a second one from its checkpoint equal two iterations bitwise."""
    fit(fake, tmp_path / "run", 1)
    assert not torch.equal(
        weights(tmp_path / "run")["conv_out.weight"], weights(run)["conv_out.weight"]
    )
    fit(fake, tmp_path / "run", 2, "--ckpt_path=last")
    again = weights(tmp_path / "run")
    assert all(torch.equal(value, again[name]) for name, value in weights(run).items())


def latents(pipeline: FakePipeline, num_steps: int) -> Tensor:
    return pipeline(PROMPTS, num_steps, [seeded(seed) for seed in SEEDS])


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_the_export_is_a_pipeline_with_the_same_samples(
    run: Path, tmp_path: Path, num_steps: int
) -> None:
    folder = tmp_path / "exported"
    export(str(run), str(folder), num_steps=num_steps, license="mit")
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "FakePipeline"
    assert index["scheduler"] == ["sid_lsg_scheduler", "SiDScheduler"]
    assert read_exported(locate(str(folder))) == Exported(999, num_steps)
    loaded = load_trained(require_checkpoint(run))
    assert isinstance(loaded.teacher, FakeFamily)
    network = loaded.teacher.network
    ours = loaded.teacher.generate(network, PROMPTS, SEEDS, 999, num_steps)
    stock = FakePipeline.from_pretrained(folder, trust_remote_code=True)
    torch.testing.assert_close(latents(stock, num_steps), ours, rtol=0, atol=1e-5)
    card = (folder / "README.md").read_text()
    assert "flow_prediction prediction" in card
    # the family has no pipeline options
    assert f"num_inference_steps={num_steps},\n    generator" in card
    assert "trust_remote_code=True" in card


def test_only_the_network_can_be_exported(run: Path, tmp_path: Path) -> None:
    export(str(run), str(tmp_path / "out"), format="network", license="mit")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md", "example.png", "scheduler", "transformer",
    }  # fmt: skip
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'transformer = FakeTransformer.from_pretrained("path/to' in card
    assert ", transformer=transformer, scheduler=scheduler" in card
    with pytest.raises(UsageError, match="--format onnx: FakeFamily does not read prompts as"):
        export(str(run), str(tmp_path / "onnx"), format="onnx", license="mit")


def test_the_run_is_opened_from_export_and_checkpoint(run: Path, tmp_path: Path) -> None:
    own = load_model(str(run / "generator"))
    assert (own.about["t_init"], own.about["num_steps"]) == (999, 2)
    images = own.sample(PROMPTS, SEEDS)
    assert images.shape == (4, 3, 16, 16)
    assert torch.equal(load_model(str(run)).sample(PROMPTS, SEEDS), images)
    assert not torch.equal(load_model(str(run), num_steps=1).sample(PROMPTS, SEEDS), images)
    assert (
        load_model(str(run / "generator"), dtype="bfloat16").sample(PROMPTS, SEEDS).isfinite().all()
    )
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    generate(
        str(run / "generator"), prompts=str(tmp_path / "prompts.txt"), accelerator="cpu",
        output=str(tmp_path / "images"),
    )  # fmt: skip
    assert len(list((tmp_path / "images").glob("*.png"))) >= 4


def test_the_familys_teacher_is_sampled(fake: str) -> None:
    assert exported(families.load(fake).scheduler_config) is None
    model = load_model(fake, "ddim", num_steps=3, guidance=2.0)
    assert model.sample(PROMPTS, SEEDS).shape == (4, 3, 16, 16)
    assert model.evaluations == 6
    assert model.cut_off("a long prompt") == ""


def test_the_family_is_evaluated(run: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    evaluate(
        str(run), prompts=str(tmp_path / "prompts.txt"), num_images=4, output=str(tmp_path / "out"),
        clip="package:demo/fashion/clip", protocol="fast", accelerator="cpu",
    )  # fmt: skip
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "clip_score_fast_4" in report["scores"]


def test_a_run_starts_from_the_familys_networks(fake: str, run: Path, tmp_path: Path) -> None:
    options = [f"--model.init.generator={run / 'generator'}"]
    options += [f"--model.init.fake_score={run / 'generator' / 'transformer'}"]
    options += ["--model.lora.generator.rank=2", "--model.lora.generator.targets=[to_q]"]
    fit(fake, tmp_path / "run", 1, *options)
    before, after = weights(run), weights(tmp_path / "run")
    assert [name for name in before if not torch.equal(before[name], after[name])] == [
        "to_q.weight"
    ]
    # The adapters do not make it from the teacher.
    assert not (tmp_path / "run" / "generator" / "lora").exists()


def test_networks_and_options_that_do_not_fit_are_rejected(fake: str, tmp_path: Path) -> None:
    teacher = families.load(fake)
    wide = FakeTransformer()
    wide.conv_in = torch.nn.Conv2d(3, 8, 3)
    wide.save_pretrained(tmp_path / "wide", safe_serialization=True)
    with pytest.raises(UsageError, match="--init: .*holds no transformer/ and is not a network"):
        load_network(str(tmp_path), teacher, "init")
    with pytest.raises(UsageError, match="--init: "):
        load_network(str(tmp_path / "wide"), teacher, "init")
    with pytest.raises(UsageError, match="FakeTransformer does not support it"):
        checkpoint_gradients({"teacher": teacher.network}, ["teacher"])


def test_the_familys_costs_are_estimated(fake: str) -> None:
    found = estimate(["--model.teacher", fake, "--data.batch_size", "4"])
    assert found["latents"] == [2, 8, 8]
    assert found["standing_gib"]["teacher"] > 0
    assert found["tflop_per_image"]["phase 2: teacher"] > 0
    assert not any("checkpointing" in row["options"] for row in found["options"])


# ---------------------------------------------------------------------- choosing a family


def test_the_index_decides_the_family(fake: str, tiny_sd: str, tmp_path: Path) -> None:
    assert families.family_of(fake, "teacher") is FakeFamily
    assert families.family_of(tiny_sd, "teacher") is StableDiffusion
    copied = Path(shutil.copytree(tiny_sd, tmp_path / "copied"))
    (copied / "model_index.json").unlink()
    assert isinstance(families.load(str(copied)), StableDiffusion)
    # A pipeline with another name and the same parts, such as one that edits images.
    (copied / "model_index.json").write_text('{"_class_name": "SomePipeline"}')
    assert isinstance(families.load(str(copied)), StableDiffusion)
    (copied / "unet").rename(copied / "transformer")
    with pytest.raises(UsageError, match=r"--base: .* it lacks unet \(SomePipeline\)"):
        families.load(str(copied), option="base")


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}', '{"_class_name": 1}', "\udcff"])
def test_an_index_without_a_pipeline_name_is_rejected(tmp_path: Path, content: str) -> None:
    (tmp_path / "model_index.json").write_text(content, errors="surrogateescape")
    with pytest.raises(UsageError, match=r"--model.teacher: .*json' does not name a pipeline"):
        families.load(str(tmp_path))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (["unet", "text_encoder_2"], r"it holds text_encoder_2 \(OtherPipeline\)"),
        (["transformer"], r"it lacks unet \(OtherPipeline\)"),
    ],
)
def test_a_foreign_model_on_the_hub_is_rejected_before_its_weights_are_downloaded(
    index: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = ("vae", "text_encoder", "tokenizer", "scheduler", *index)
    found: dict[str, Any] = {name: ["library", "Class"] for name in parts}
    found |= {"_class_name": "OtherPipeline", "safety_checker": [None, None]}
    (tmp_path / "model_index.json").write_text(json.dumps(found))

    def fetch(name: str, file: str, revision: str | None) -> str:
        assert (name, file, revision) == ("owner/name", "model_index.json", "main")
        return str(tmp_path / file)

    monkeypatch.setattr("sid_lsg.files.loading.hf_hub_download", fetch)
    with pytest.raises(UsageError, match=f"--model.teacher: 'owner/name' is not in .*{message}"):
        families.load("owner/name", "main")


def test_an_architecture_belongs_to_a_family() -> None:
    teacher = families.load("architecture:sd15-small", resolution=64)
    assert isinstance(teacher, StableDiffusion)
    assert teacher.latent_shape == (4, 8, 8)
    with pytest.raises(UsageError, match="--base: there is no architecture 'sd9'. Choose"):
        families.load("architecture:sd9", option="base")


@pytest.mark.slow
def test_a_family_is_imported_only_when_it_is_chosen() -> None:
    code = (
        "import sys, sid_lsg.teachers.families\n"
        "assert not {'diffusers', 'transformers', 'lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_only_one_file_knows_the_families() -> None:
    """No other wing names a family's module or its network."""
    package = Path(families.__file__).parents[1]
    # The demo and the official code's files are themselves Stable Diffusion.
    official = {package / "checkpoints" / name for name in ("official.py", "module_pickle.py")}
    official |= {*(package / "export" / "original").iterdir()}  # each is of one original code
    for path in {*package.rglob("*.py")} - official:
        if path.relative_to(package).parts[0] in {"teachers", "demo"}:
            continue
        found = re.search(
            r"teachers\.(stable_|sdxl|unet|untrained)|UNet|StableDiff", path.read_text()
        )
        assert not found, path
