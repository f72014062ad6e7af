"""Runs of test_strategies.py in real processes.

A job is a JSON file {folder, prompts, teacher, runs}. Every process does all runs in order, which
avoids starting new processes. Results are in subfolders named after the runs.
"""

import json
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sid_lsg.callbacks import Export
from sid_lsg.checkpoints.io import SafeCheckpointIO
from sid_lsg.data.prompts import PromptBatch, PromptDataModule
from sid_lsg.method.draws import Phase
from sid_lsg.method.phases import PhaseInputs
from sid_lsg.options.real_data import RealData
from sid_lsg.options.training import Gradients, Memory
from sid_lsg.training.module import SiDLSG
from sid_lsg.training.strategies import register_strategies
from tests.helpers import forked

NETWORKS = ("fake_score", "generator", "ema")


def size(tensors: Any) -> int:
    """Return the total bytes of the tensors in nested lists; other values count 0."""
    if isinstance(tensors, list):
        return sum(size(tensor) for tensor in tensors)
    return tensors.numel() * tensors.element_size() if torch.is_tensor(tensors) else 0


class Traffic(TorchDispatchMode):
    """Count the bytes of collectives by name, each byte once."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = op.name()
        if name.startswith("c10d::"):
            # The larger one of output and input is the whole tensor.
            self.bytes[name] += max(size(arg) for arg in args)
        return op(*args, **(kwargs or {}))


class Watched(SiDLSG):
    """Optionally count the last iteration's traffic (slow) and make prompts' conditioning NaN."""

    counted = False
    poisoned: Sequence[str] = ()

    def training_step(self, *arguments: Any) -> None:
        self.traffic = Traffic()
        last = self.trainer.global_step == self.trainer.max_steps - 1
        with self.traffic if last and self.counted else nullcontext():
            super().training_step(*arguments)

    def phase_inputs(self, phase: Phase, batch: PromptBatch) -> PhaseInputs:
        inputs = super().phase_inputs(phase, batch)
        prompts = batch.fake if phase is Phase.FAKE_SCORE else batch.generator
        bad = torch.tensor([prompt in self.poisoned for prompt in prompts], device=self.device)
        condition = {
            name: value.masked_fill(bad.view(-1, *[1] * (value.dim() - 1)), float("nan"))
            for name, value in inputs.condition.items()
            if value.is_floating_point()  # unlike masks
        }
        return inputs._replace(condition=inputs.condition | condition)


class Rows(L.Callback):
    """Record the logged values of each iteration, and generate latents at the end."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.rows.append({name: float(v) for name, v in trainer.logged_metrics.items()})

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.latents = pl_module.generate(["a cat", "the moon"], [0, 1], num_steps=2)


def optimizer(name: str, options: dict[str, Any]) -> Any:
    return lambda parameters: getattr(torch.optim, name)(parameters, **options)


def fit(job: dict[str, Any], run: dict[str, Any]) -> None:
    """Train once; save weights, logged values, traffic and warnings."""
    name, options = run["optimizer"]
    both = {key: optimizer(name, options) for key in ("optimizer_fake", "optimizer_generator")}
    both |= {"real_data": RealData(1.0, 0.1)} if "real_images" in run else {}
    groups = {"memory": Memory, "gradients": Gradients}
    own = run.get("model", {})
    own = {k: groups[k](**value) if k in groups else value for k, value in own.items()}
    module = Watched(job["teacher"], prompt_dropout=0.0, **both, **own)
    module.counted, module.poisoned = run.get("counted", False), run.get("poisoned", ())
    root, rows = Path(job["folder"]) / run["name"], Rows()
    trainer = L.Trainer(
        accelerator=job["accelerator"],
        max_steps=run["steps"],
        max_epochs=-1,
        logger=False,
        callbacks=[rows, *([Export()] if run.get("export") else [])],
        log_every_n_steps=1,
        default_root_dir=root,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        plugins=[SafeCheckpointIO()],
        **run.get("trainer", {}),
    )
    data = PromptDataModule(
        job["prompts"],
        batch_size=run.get("batch_size", 4),
        num_workers=0,
        real_images=run.get("real_images"),
    )
    before = run.get("from")
    ckpt_path = str(Path(job["folder"]) / before / "state.ckpt") if before else None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    trainer.save_checkpoint(root / "state.ckpt")
    report = {
        "rows": rows.rows,
        "traffic": module.traffic.bytes,
        "warnings": [str(warning.message) for warning in caught],
        "stored": {
            network: sum(
                (p.to_local() if hasattr(p, "to_local") else p).numel()
                for p in getattr(module, network).parameters()
            )
            for network in NETWORKS
        },
    }
    (root / f"report{trainer.global_rank}.json").write_text(json.dumps(report))
    torch.save(rows.latents, root / f"latents{trainer.global_rank}.pt")


def main(path: Path) -> None:
    """Do all runs of a job."""
    register_strategies()
    job = json.loads(path.read_text())
    for run in job["runs"]:
        fit(job, run)


def run_job(
    folder: Path,
    teacher: str,
    prompts: Sequence[str],
    processes: int,
    runs: Sequence[dict[str, Any]],
    accelerator: str = "cpu",
) -> None:
    """Execute several runs in real processes that are started as torchrun does."""
    file = folder / "prompts.txt"
    file.write_text("\n".join(prompts))
    job = {"folder": str(folder), "prompts": str(file), "teacher": teacher, "runs": runs}
    path = folder / f"job{processes}.json"
    path.write_text(json.dumps(job | {"accelerator": accelerator}))
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(forked.free_port())}
    common |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    common |= {"TORCHELASTIC_RUN_ID": "test"} if processes > 1 else {}
    ranks = map(str, range(processes))
    jobs = [([path], common | {"RANK": rank, "LOCAL_RANK": rank}) for rank in ranks]
    forked.all_end_well(main, jobs, folder, seconds=900)


def weights(folder: Path, run: str, network: str) -> Tensor:
    """Return a network's weights at the end of a run, as one vector."""
    saved = torch.load(folder / run / "state.ckpt", weights_only=True)["state_dict"]
    return torch.cat([v.flatten() for name, v in saved.items() if name.startswith(f"{network}.")])


def assert_same(folder: Path, ours: str, theirs: str, limit: float) -> None:
    """Compare the networks at the end of two runs."""
    for network in NETWORKS:
        a, b = weights(folder, ours, network), weights(folder, theirs, network)
        assert float((a - b).norm() / b.norm()) < limit, network
