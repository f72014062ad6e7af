"""Callbacks in real runs of the tiny pipeline: one run's directory serves most tests."""

import csv
import errno
import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import pytest
import torch
import wandb
from lightning.pytorch.loggers import Logger, WandbLogger
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

import sid_lsg.callbacks.throughput
from sid_lsg.callbacks import Checkpoint, Export, ImageGrid, Metrics, Progress, Throughput
from sid_lsg.callbacks.prompts import spread
from sid_lsg.data.prompts import PromptDataModule
from sid_lsg.generation.models import load_model
from sid_lsg.images.pixels import grid, to_pil
from sid_lsg.loggers import CSVLogger
from sid_lsg.messages.errors import UsageError
from sid_lsg.metrics.evaluator import Evaluator
from sid_lsg.metrics.features import CLIPFeatures
from sid_lsg.metrics.protocol import clip_protocol
from sid_lsg.metrics.statistics import Statistics
from sid_lsg.teachers.stable_diffusion import StableDiffusion
from sid_lsg.training.callback import RunCallback
from sid_lsg.training.module import SiDLSG
from tests.helpers.embedders import DIMENSION, make_clip
from tests.helpers.statistics import statistics

PROMPTS = ["a red cat", "two dogs on a log", "something else"]
BATCH, STEPS, EVERY = 2, 4, 2
NUM_IMAGES, NUM_PICTURED = 5, 2
FID, CLIP = "fid_fast_5", "clip_score_fast_5"


class Run(NamedTuple):
    """What is left of a run."""

    root: Path
    module: SiDLSG
    trainer: L.Trainer


class Files(NamedTuple):
    """What runs need: all in one folder."""

    folder: Path
    clip: str
    reference: str
    prompts: str


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, small_sd: str) -> Files:
    folder = tmp_path_factory.mktemp("callbacks")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    features = torch.randn(50, DIMENSION, generator=torch.Generator().manual_seed(0))
    clip = make_clip(folder / "clip", Path(small_sd, "tokenizer"))
    protocol = clip_protocol(CLIPFeatures.from_pretrained(str(clip)), fast=True)
    reference = statistics(features, protocol=protocol.identity)
    reference.save(folder / "reference.safetensors")
    names = (str(folder / name) for name in ("reference.safetensors", "prompts.txt"))
    return Files(folder, str(clip), *names)


def fit(
    small_sd: str,
    files: Files,
    root: Path,
    *callbacks: L.Callback,
    logger: Logger | bool = False,
    max_steps: int = STEPS,
    ckpt_path: str | None = None,
    num_steps: int = 1,
    lr: float = 1e-3,  # moves visibly in a few steps
    accelerator: str = "cpu",
) -> Run:
    def adam(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=lr)

    module = SiDLSG(small_sd, num_steps=num_steps, optimizer_fake=adam, optimizer_generator=adam)
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=1,
        max_steps=max_steps,
        max_epochs=-1,
        default_root_dir=root,
        logger=logger,
        callbacks=list(callbacks),
        log_every_n_steps=EVERY,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
        enable_progress_bar=any(isinstance(c, Progress) for c in callbacks),
    )
    data = PromptDataModule(files.prompts, batch_size=BATCH, num_workers=0)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    return Run(root, module, trainer)


def metrics(files: Files, **options: Any) -> Metrics:
    defaults = {
        "every_n_images": EVERY * BATCH,
        "num_images": NUM_IMAGES,
        "batch_size": 3,
        "teacher_steps": 2,
        "num_pictured": NUM_PICTURED,
    }
    return Metrics(files.clip, "", reference=files.reference, **defaults | options)


@pytest.fixture(scope="module")
def run(small_sd: str, files: Files) -> Run:
    """A run with every callback, in a directory where an earlier export is."""
    root = files.folder / "run"
    (root / "generator").mkdir(parents=True)
    (root / "generator" / "earlier.txt").touch()
    return fit(
        small_sd,
        files,
        root,
        Checkpoint(every_n_steps=3, keep=2),
        ImageGrid(every_n_steps=EVERY, num_images=4),
        Throughput(),
        Progress(refresh_rate=1),
        Export(),
        metrics(files),
        logger=CSVLogger(str(root), name="", version=""),
    )


@pytest.fixture
def earlier(run: Run, tmp_path: Path) -> Path:
    """A directory with what is needed to continue the run."""
    root = tmp_path / "run"
    shutil.copytree(run.root / "checkpoints", root / "checkpoints", symlinks=True)
    return root


def rows(run: Run) -> list[dict[str, str]]:
    with (run.root / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


# ---------------------------------------------------------------------- files of a run


def test_nothing_temporary_is_left(run: Run) -> None:
    assert sorted(path.name for path in run.root.iterdir()) == [
        "checkpoints", "comparison.png", "generator", "grids", "metrics.csv", "summary.json",
    ]  # fmt: skip
    assert [path for path in run.root.rglob("*") if "tmp" in path.name] == []


def test_grids_show_the_start_and_the_progress(run: Run) -> None:
    names = sorted(path.name for path in (run.root / "grids").iterdir())
    assert names == [f"step-{step:07d}.png" for step in (0, 2, 4)]
    prompts, module = [*PROMPTS, PROMPTS[0]], run.module

    def picture(network: torch.nn.Module) -> np.ndarray:
        latents = module.generate(prompts, range(4), network=network)
        return np.asarray(grid(module.teacher.decode(latents)))

    start, middle, end = (pixels(run.root / "grids" / name) for name in names)
    assert np.array_equal(start, picture(module.teacher.network))
    assert np.array_equal(end, picture(module.ema))
    assert not np.array_equal(start, middle)
    assert not np.array_equal(middle, end)


def test_metrics_are_logged_at_iterations(run: Run) -> None:
    table = rows(run)
    assert {"loss_fake", "loss_generator", "images_per_s", FID, CLIP} <= table[0].keys()
    losses = [row for row in table if row["loss_fake"]]
    assert [int(row["step"]) for row in losses] == [2, 4]
    assert [float(row["images_seen"]) for row in losses] == [2 * BATCH, 4 * BATCH]
    scores = [row for row in table if row[FID]]
    assert [int(row["step"]) for row in scores] == [2, 4]
    assert all(row[CLIP] for row in scores)


def test_throughput_is_logged_with_the_losses(run: Run) -> None:
    losses = [row for row in rows(run) if row["loss_fake"]]
    assert all(float(row["images_per_s"]) > 0 for row in losses)
    assert all(0.05 < float(row["peak_memory_gib"]) < 100 for row in losses)


def test_checkpoints_are_on_schedule_and_at_the_end(run: Run) -> None:
    folder = run.root / "checkpoints"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["0000003.ckpt", "0000004.ckpt", "last.ckpt"]
    assert (folder / "last.ckpt").is_symlink()
    assert (folder / "last.ckpt").resolve() == (folder / "0000004.ckpt").resolve()
    assert (folder / "last.ckpt").readlink() == Path("0000004.ckpt")  # the run can be moved


def test_checkpoints_are_plain_data_without_the_teacher(run: Run) -> None:
    for name, step in (("0000003.ckpt", 3), ("last.ckpt", STEPS)):
        checkpoint = torch.load(run.root / "checkpoints" / name, weights_only=True)
        assert checkpoint["global_step"] == step
        assert len(checkpoint["optimizer_states"]) == 2
        weights = checkpoint["state_dict"]
        networks = {name.split(".")[0] for name in weights}
        assert networks == {"fake_score", "generator", "ema"}
    assert all(torch.equal(value, weights[name]) for name, value in run.module.state_dict().items())


def test_the_export_is_the_averaged_generator(run: Run) -> None:
    folder = run.root / "generator"
    assert not (folder / "earlier.txt").exists()
    weights = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    ema = run.module.ema.state_dict()
    assert weights.keys() == ema.keys()
    assert all(torch.equal(value, ema[name]) for name, value in weights.items())


def test_the_summary_compares_teacher_start_and_end(run: Run, files: Files) -> None:
    summary = json.loads((run.root / "summary.json").read_text())
    assert summary["fit_seconds"] > 0
    assert summary["images_seen"] == STEPS * BATCH
    assert summary["iterations"] == STEPS
    assert (run.root / summary["export"] / "model_index.json").is_file()
    assert summary["teacher_steps"] == 2
    assert summary["teacher_guidance"] == run.module.kappas.eval_real
    counts = [summary[f"{key}evaluations_per_image"] for key in ("teacher_", "initial_", "")]
    assert counts == [4, 1, 1]

    module, teacher = run.module, run.module.teacher
    samplers = {
        "teacher_": lambda prompts, seeds: teacher.sample_reference(prompts, seeds, 2, 1.5),
        "initial_": lambda prompts, seeds: teacher.decode(
            module.generate(prompts, seeds, network=teacher.network)
        ),
        "": lambda prompts, seeds: teacher.decode(module.generate(prompts, seeds)),
    }
    features = CLIPFeatures.from_pretrained(files.clip)
    protocol = clip_protocol(features, fast=True)
    reference = Statistics.load(files.reference)
    evaluator = Evaluator(protocol, features, reference=reference)
    found = {}
    for key, sampler in samplers.items():
        scores = evaluator.of_sampler(sampler, PROMPTS, NUM_IMAGES, NUM_IMAGES, "cpu").values
        found[key] = (summary[key + FID], summary[key + CLIP])
        assert found[key] == pytest.approx((scores["fid"], scores["clip_score"]), rel=1e-3)
    assert len(set(found.values())) == 3


def test_the_last_scores_are_in_the_log_too(run: Run) -> None:
    summary = json.loads((run.root / "summary.json").read_text())
    last = [row for row in rows(run) if row[FID]][-1]
    assert float(last[FID]) == pytest.approx(summary[FID])
    assert float(last[CLIP]) == pytest.approx(summary[CLIP])


def test_the_comparison_shows_three_rows(run: Run) -> None:
    height, width, _ = pixels(run.root / "comparison.png").shape
    side = 2 * 64  # enlarged by a whole factor
    assert height > 3 * side
    assert width > NUM_PICTURED * side


def test_the_progress_bar_counts_iterations(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (progress,) = [c for c in run.trainer.callbacks if isinstance(c, Progress)]  # type: ignore[attr-defined]
    bar = progress.train_progress_bar
    assert (bar.n, bar.total) == (STEPS, STEPS)
    monkeypatch.setattr(run.trainer, "loggers", [CSVLogger(str(tmp_path), version=3)])
    monkeypatch.setattr(progress, "_row", -1)  # as if this were the first row
    shown = progress.get_metrics(run.trainer, run.module)
    assert {"loss_fake", "loss_generator", "images_per_s"} <= shown.keys()
    assert "v_num" not in shown


def test_the_progress_bar_reads_each_row_once(
    small_sd: str, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading a loss waits for the device: not in every iteration, though each redraws the bar."""
    read, drawn = [], []
    progress = Progress(refresh_rate=1)
    values: Any = L.Trainer.progress_bar_metrics.fget  # type: ignore[attr-defined]

    def reading(trainer: L.Trainer) -> Any:
        read.append(trainer.global_step)
        return values(trainer)

    class Drawn(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            drawn.append("loss_fake" in progress.train_progress_bar.postfix)

    monkeypatch.setattr(L.Trainer, "progress_bar_metrics", property(reading))
    fit(small_sd, files, tmp_path, progress, Drawn(), max_steps=2 * EVERY + 1)
    assert read == [1, EVERY, 2 * EVERY]
    assert drawn == [step >= EVERY for step in range(1, 2 * EVERY + 2)]


def test_evaluation_never_changes_training(small_sd: str, files: Files, run: Run) -> None:
    bare = fit(small_sd, files, files.folder / "bare")
    with_all = run.module.state_dict()
    assert with_all.keys() == bare.module.state_dict().keys()
    for name, value in bare.module.state_dict().items():
        assert torch.equal(value, with_all[name]), name
    start = bare.module.teacher.network.state_dict()
    for network in (bare.module.generator, bare.module.fake_score, bare.module.ema):
        assert not torch.equal(network.conv_out.weight, start["conv_out.weight"])  # it trained
    assert not (files.folder / "bare").exists()


# ---------------------------------------------------------------------- continuing


class Iterations(L.Callback):
    """Remembers which iterations ran."""

    def __init__(self) -> None:
        self.ran: list[int] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        self.ran.append(batch.iteration)


LOGGERS: dict[str, Callable[[Path], Logger | bool]] = {
    "none": lambda root: False,
    "csv": lambda root: CSVLogger(str(root), name="", version=""),
    "wandb": lambda root: WandbLogger(project="sid-lsg", save_dir=str(root), mode="disabled"),
}


@pytest.mark.parametrize("logger", LOGGERS)
def test_last_continues_with_any_logger(
    small_sd: str, files: Files, earlier: Path, logger: str
) -> None:
    """Lightning looks for `last` before callbacks are set up, where the logger suggests."""
    iterations, progress = Iterations(), Progress(refresh_rate=1)
    pictures = ImageGrid(every_n_steps=1, num_images=1)
    callbacks = [Checkpoint(), iterations, progress, pictures]
    options = {"logger": LOGGERS[logger](earlier), "max_steps": STEPS + 2, "ckpt_path": "last"}
    fit(small_sd, files, earlier, *callbacks, **options)
    wandb.finish()
    assert iterations.ran == [STEPS, STEPS + 1]
    bar = progress.train_progress_bar
    assert (bar.n, bar.total) == (STEPS + 2, STEPS + 2)
    grids = sorted(path.name for path in (earlier / "grids").iterdir())
    assert grids == [f"step-{step:07d}.png" for step in (5, 6)]  # each iteration's once


def test_last_is_the_newest_after_a_moved_run_continued(
    small_sd: str, files: Files, earlier: Path
) -> None:
    fit(small_sd, files, earlier, Checkpoint(), max_steps=STEPS + 1, ckpt_path="last")
    links = {p.name: str(p.readlink()) for p in (earlier / "checkpoints").glob("last*")}
    assert links == {"last.ckpt": "0000005.ckpt"}


def test_continuing_keeps_what_was_logged(
    small_sd: str, files: Files, run: Run, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(run.root, tmp_path / "run", symlinks=True))
    logger = CSVLogger(str(root), name="", version="")
    callbacks = [Checkpoint(), Throughput(), metrics(files)]
    options = {"logger": logger, "max_steps": STEPS + 2, "ckpt_path": "last"}
    after = rows(fit(small_sd, files, root, *callbacks, **options))
    for name in ("loss_fake", FID):
        assert [int(row["step"]) for row in after if row[name]] == [2, 4, 6]
    before = rows(run)
    assert after[: len(before)] == before


def test_a_changed_learning_rate_holds_when_a_run_is_continued(
    small_sd: str, files: Files, earlier: Path
) -> None:
    """Not the checkpoint's, which torch would bring back; its moments are kept."""
    options = {"max_steps": STEPS + 1, "ckpt_path": "last", "lr": 5e-4}
    for optimizer in fit(small_sd, files, earlier, Checkpoint(), **options).trainer.optimizers:
        assert optimizer.param_groups[0]["lr"] == 5e-4
        assert float(next(iter(optimizer.state.values()))["step"]) == STEPS + 1


def test_a_finished_run_can_be_started_again(small_sd: str, files: Files, earlier: Path) -> None:
    """Nothing is left to train; the summary is still written."""
    again = fit(small_sd, files, earlier, Checkpoint(), Export(), metrics(files), ckpt_path="last")
    assert again.trainer.global_step == STEPS
    summary = json.loads((earlier / "summary.json").read_text())
    assert summary["images_seen"] == STEPS * BATCH
    assert summary[FID] > 0


def test_a_finished_run_that_is_started_again_makes_up_for_what_failed_at_its_end(
    small_sd: str, files: Files, earlier: Path
) -> None:
    """The export was lost to a full disk, say, and the comparison to a signal."""
    last = torch.load(earlier / "checkpoints" / "last.ckpt", weights_only=True)
    seconds = last["callbacks"]["Metrics"]["fit_seconds"]
    assert 0 < seconds < 100
    assert not (earlier / "generator").exists()
    checkpoint = Checkpoint(best=FID)
    own = metrics(files)
    fit(small_sd, files, earlier, checkpoint, Export(), own, ckpt_path="last")
    assert (earlier / "generator" / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    after = json.loads((earlier / "summary.json").read_text())
    assert after["fit_seconds"] == round(seconds, 1)  # the comparison is no training
    assert checkpoint.best is not None
    assert checkpoint.best.state_dict()["value"] == pytest.approx(after[FID])
    assert (earlier / "checkpoints" / "best.ckpt").exists()


def test_the_seconds_of_a_continued_run_are_those_of_all_its_training(
    small_sd: str, files: Files, earlier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = metrics(files)
    load = own.load_state_dict
    monkeypatch.setattr(own, "load_state_dict", lambda state: load(state | {"fit_seconds": 1e4}))
    fit(small_sd, files, earlier, Checkpoint(), own, ckpt_path="last", max_steps=STEPS + 1)
    summary = json.loads((earlier / "summary.json").read_text())
    assert 1e4 < summary["fit_seconds"] < 1.01e4
    saved = torch.load(earlier / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["callbacks"]["Metrics"]["fit_seconds"] == pytest.approx(1e4, rel=0.01)


# ---------------------------------------------------------------------- fewer and other options


def test_what_is_switched_off_is_absent(
    small_sd: str, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No grids, no scores, no export, no bar."""
    (tmp_path / "run").mkdir()
    off = [ImageGrid(every_n_steps=0), Metrics(), Progress(refresh_rate=0)]
    fit(small_sd, files, tmp_path / "run", *off, max_steps=1)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["summary.json"]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary.keys() == {"fit_seconds", "images_seen", "iterations", "export"}
    assert summary["export"] is None
    printed = capsys.readouterr()
    assert "distilling" not in printed.out + printed.err


def test_no_bar_means_no_bar_of_the_evaluation_either(
    small_sd: str, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"num_images": 2, "teacher_steps": 1, "num_pictured": 1}
    fit(small_sd, files, tmp_path, Progress(0), metrics(files, **options), max_steps=1)
    printed = capsys.readouterr()
    assert "SiD-LSG" in printed.out  # the table
    assert "untrained, 1 step:" not in printed.out + printed.err


def test_the_table_says_how_many_steps_the_generator_takes(
    small_sd: str, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = metrics(files, num_images=2, teacher_steps=1, num_pictured=1, teacher_guidance=1.0)
    fit(small_sd, files, tmp_path, few, max_steps=1, num_steps=2)
    summary = json.loads((tmp_path / "summary.json").read_text())
    counts = [summary[f"{key}evaluations_per_image"] for key in ("teacher_", "initial_", "")]
    assert counts == [1, 2, 2]
    assert summary["teacher_guidance"] == 1.0
    table = capsys.readouterr().out
    assert "teacher, 1 step" in table
    assert "untrained, 2 steps" in table
    assert "SiD-LSG, 2 steps" in table


def test_the_comparison_comes_before_the_networks_leave_their_device(
    small_sd: str, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning moves them to the CPU before `on_fit_end`; and the last checkpoint comes first."""
    events: list[str] = []

    def noting(owner: Any, name: str, event: str) -> None:
        own = getattr(owner, name)

        def noted(*args: Any, **kwargs: Any) -> Any:
            events.append(event)
            return own(*args, **kwargs)

        monkeypatch.setattr(owner, name, noted)

    noting(Checkpoint, "on_train_end", "saved")
    noting(SiDLSG, "sample_teacher", "compared")
    noting(SiDLSG, "cpu", "moved")
    own = metrics(files, every_n_images=0)
    fit(small_sd, files, tmp_path, own, Checkpoint(), max_steps=1)
    assert list(dict.fromkeys(events)) == ["saved", "compared", "moved"]


@pytest.mark.gpu
def test_a_run_on_a_gpu_is_scored_to_its_end(small_sd: str, files: Files, tmp_path: Path) -> None:
    where: set[str] = set()

    class Where(RunCallback):
        def on_trained(self, trainer: L.Trainer, module: SiDLSG) -> None:
            where.update(p.device.type for p in module.parameters())

    callbacks = [Checkpoint(), ImageGrid(every_n_steps=EVERY, num_images=4), Export()]
    own = metrics(files)
    fit(small_sd, files, tmp_path, *callbacks, own, Where(), accelerator="gpu")
    assert where == {"cuda"}
    assert json.loads((tmp_path / "summary.json").read_text())["iterations"] == STEPS


@pytest.mark.parametrize("error", [OSError, SafetensorError])
def test_an_export_that_fails_leaves_the_earlier_one(
    error: type[Exception], tmp_path: Path
) -> None:
    def fail(network: Any, folder: Path, t_init: int, num_steps: int) -> None:
        folder.mkdir()
        raise error("no space left")

    (tmp_path / "generator").mkdir()
    (tmp_path / "generator" / "model_index.json").write_text("earlier")
    module = SimpleNamespace(
        teacher=SimpleNamespace(save_generator=fail), t_init=625, num_steps=1,
        averaged=lambda: nullcontext(torch.nn.Identity()),
    )  # fmt: skip
    strategy = SimpleNamespace(broadcast=lambda value: value)
    trainer: Any = SimpleNamespace(default_root_dir=tmp_path, strategy=strategy)
    export = Export()
    export.on_train_end(trainer, module)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="could not be written .*no space"):
        export.on_trained(trainer, module)  # after the last checkpoint
    assert (tmp_path / "generator" / "model_index.json").read_text() == "earlier"


def test_generators_on_the_way_are_kept(small_sd: str, files: Files, tmp_path: Path) -> None:
    """The same files as those of a run that ends there, for everything that takes a model."""
    run = fit(small_sd, files, tmp_path / "long", Export(every_n_steps=2), max_steps=5)
    fit(small_sd, files, tmp_path / "short", Export(), max_steps=2)
    kept = sorted(path.name for path in (run.root / "generators").iterdir())
    assert kept == ["step-0000002", "step-0000004"]
    early, end = run.root / "generators" / kept[0], run.root / "generator"
    for path in (p for p in (tmp_path / "short" / "generator").rglob("*") if p.is_file()):
        assert (early / path.relative_to(tmp_path / "short" / "generator")).read_bytes() == (
            path.read_bytes()
        ), path
    weights = Path("unet", "diffusion_pytorch_model.safetensors")
    assert (early / weights).read_bytes() != (end / weights).read_bytes()
    plain = fit(small_sd, files, tmp_path / "plain", Export(), max_steps=5)  # trained no otherwise
    assert (plain.root / "generator" / weights).read_bytes() == (end / weights).read_bytes()
    assert load_model(str(early)).sample(["a red dress"], [0]).shape == (1, 3, 64, 64)


def test_a_full_disk_costs_a_generator_on_the_way_alone(
    small_sd: str, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = StableDiffusion.save_generator

    def fail(self: Any, network: Any, folder: Path, *args: Any) -> None:
        save(self, network, folder, *args)
        if folder.parent.name == "generators":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(StableDiffusion, "save_generator", fail)
    with pytest.warns(UserWarning, match=r"generators/step-0000001 could not be .*No space left"):
        fit(small_sd, files, tmp_path, Export(every_n_steps=1), max_steps=2)
    assert list((tmp_path / "generators").iterdir()) == []
    assert (tmp_path / "generator" / "model_index.json").is_file()


def test_throughput_counts_all_processes_and_only_the_iterations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logged: dict[str, float] = {}
    module = SimpleNamespace(
        device=torch.device("cpu"), log=lambda name, value, **_: logged.update({name: value})
    )
    trainer: Any = SimpleNamespace(world_size=2, log_every_n_steps=2, global_step=0)
    batch = SimpleNamespace(fake=["a", "b", "c", "d"])
    now = 0.0
    clock = SimpleNamespace(perf_counter=lambda: now)
    monkeypatch.setattr(sid_lsg.callbacks.throughput, "time", clock)
    throughput = Throughput()
    throughput.on_train_start(trainer, module)  # type: ignore[arg-type]
    for seconds in (1.0, 3.0, 0.5, 0.5):
        throughput.on_train_batch_start(trainer, module, batch, 0)  # type: ignore[arg-type]
        now, trainer.global_step = now + seconds, trainer.global_step + 1
        throughput.on_train_batch_end(trainer, module, None, batch, 0)
        now += 100  # an evaluation
        if trainer.global_step == 2:
            assert logged["images_per_s"] == pytest.approx(2 * 4 * 2 / 4.0)
    assert logged["images_per_s"] == pytest.approx(2 * 4 * 2 / 1.0)


def test_a_grid_shows_prompts_of_ones_own(small_sd: str, files: Files, tmp_path: Path) -> None:
    own = ["a red dress", "a boot"]
    options = {"max_steps": 1, "lr": 0.0}
    fit(small_sd, files, tmp_path, ImageGrid(1, num_images=3, prompts=own), **options)  # type: ignore[arg-type]
    module = SiDLSG(small_sd)
    expected = grid(module.teacher.decode(module.generate([*own, own[0]], range(3))))
    assert np.array_equal(pixels(tmp_path / "grids" / "step-0000001.png"), np.asarray(expected))


@pytest.mark.parametrize("prompts", [[], ["a", "b", "c"]])
def test_prompts_that_a_grid_has_no_place_for_are_refused(prompts: list[str]) -> None:
    with pytest.raises(
        UsageError, match=r"--image_grid\.prompts must be a list of 1 to 2 .*, got \d"
    ):
        ImageGrid(num_images=2, prompts=prompts)


def test_prompts_are_spread_evenly() -> None:
    assert spread(list("abcdefgh"), 4) == list("aceg")
    assert spread(list("abcde"), 3) == list("abd")
    assert spread(list("abc"), 3) == list("abc")
    assert spread(list("ab"), 5) == list("ababa")


@pytest.mark.parametrize(
    ("callback", "option", "value"),
    [
        (ImageGrid, "image_grid.every_n_steps", -1),
        (ImageGrid, "image_grid.num_images", 0),
        (Export, "export.every_n_steps", -1),
        (Metrics, "metrics.every_n_images", -1),
        (Metrics, "metrics.num_images", 1),
        (Metrics, "metrics.batch_size", 0),
        (Metrics, "metrics.teacher_steps", 0),
        (Metrics, "metrics.num_pictured", 0),
        (Checkpoint, "checkpoint.every_n_steps", -1),
        (Checkpoint, "checkpoint.keep", -2),
    ],
)
def test_impossible_numbers_are_refused(callback: Any, option: str, value: int) -> None:
    with pytest.raises(UsageError, match=rf"--{option} must be at least -?\d, got {value}"):
        callback(**{option.split(".")[1]: value})


@pytest.mark.parametrize("scale", [0.5, 0, -1, float("nan")])
def test_a_scale_at_which_the_teacher_would_not_be_guided_is_refused(scale: float) -> None:
    with pytest.raises(UsageError, match=r"--metrics\.teacher_guidance must be .*at least 1"):
        Metrics(teacher_guidance=scale)


def test_fewer_scored_images_than_processes_are_refused(
    small_sd: str, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sid_lsg.distributed.processes.process", lambda: (0, 5))
    with pytest.raises(UsageError, match=r"--metrics\.num_images: 4 images for 5 processes"):
        fit(small_sd, files, tmp_path, metrics(files, num_images=4))


def test_a_reference_without_a_clip_is_refused(files: Files) -> None:
    """FID would be left out without a word."""
    with pytest.raises(UsageError, match=r"--metrics\.reference.*--metrics\.clip"):
        Metrics(reference=files.reference)


# ---------------------------------------------------------------------- Weights & Biases


def test_wandb_gets_grids_and_scores(
    small_sd: str, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb-own"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.finish()  # a run that another test may have left
    wandb.teardown()  # read these variables anew
    root = tmp_path / "run"
    root.mkdir()
    logger = WandbLogger(project="sid-lsg", save_dir=str(root))
    pictures = ImageGrid(every_n_steps=EVERY, num_images=2)
    result = fit(small_sd, files, root, pictures, Throughput(), metrics(files), logger=logger)
    logged = dict(logger.experiment.summary)
    wandb.finish()
    wandb.teardown()

    summary = json.loads((root / "summary.json").read_text())
    assert logged[FID] == pytest.approx(summary[FID])
    assert logged[CLIP] == pytest.approx(summary[CLIP])
    assert logged["images_seen"] == STEPS * BATCH
    assert logged["images_per_s"] > 0
    assert logged["trainer/global_step"] == result.trainer.global_step == STEPS

    (media,) = root.glob("wandb/offline-run-*/files/media/images")

    def contents(folder: Path, pattern: str) -> list[bytes]:
        return sorted(pixels(path).tobytes() for path in folder.glob(pattern))

    shown = contents(media, "grid_*.png")
    assert len(shown) == 3 * 2  # one by one
    module = result.module
    images = module.teacher.decode(module.generate(spread(PROMPTS, 2), range(2)))
    assert {np.asarray(image).tobytes() for image in to_pil(images)} <= set(shown)
    assert contents(media, "comparison_*.png") == contents(root, "comparison.png")
