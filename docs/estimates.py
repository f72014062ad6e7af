"""Estimate the memory and the hours of configs/teacher, and write results/estimates/teachers.json.

`python docs/estimates.py` takes some minutes; names of configs choose some. `make tables` then
renews the documentation. Headers of the configs are written by hand; the tests compare them.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from sid_lsg.commands.estimate import Estimate, estimate
from sid_lsg.commands.fit_options import FitOptions
from sid_lsg.costs.cards import GPU
from sid_lsg.costs.compute import iteration_seconds
from sid_lsg.costs.memory import total_bytes
from sid_lsg.costs.options import plan_of
from sid_lsg.costs.plan import PlannedRun
from sid_lsg.teachers.families import outline

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGS = REPOSITORY / "configs"
GIB = 2**30
LORA = (
    *("--model.lora.fake_score.rank=64", "--model.lora.generator.rank=64"),
    "--model.memory.frozen_precision=bf16",
)
LORA_24 = (*LORA, "--model.micro_batch_size=4", "--model.text.device=cpu")
CASES: list[tuple[str, GPU, int, str, tuple[str, ...]]] = [
    *(("all weights", "h100", number, "fsdp2", ()) for number in (1, 8, 64)),
    ("LoRA", "h100", 1, "gpu", LORA),
    ("LoRA", "3090", 1, "gpu", LORA_24),
]  # (what is trained, GPU, number, configs/trainer, options)
RESOLUTIONS = (1024, 512)


def rows(path: Path) -> list[dict[str, Any]]:
    """Estimate one config at both resolutions in all cases."""
    found = []
    for resolution in RESOLUTIONS:
        teacher, known = None, dict[Any, Any]()
        for trained, gpu, number, trainer, options in CASES:
            files = (CONFIGS / "lsg.yaml", path, CONFIGS / "trainer" / f"{trainer}.yaml")
            args = [f"--config={file}" for file in files]
            args += [f"--model.resolution={resolution}", *options]
            said = re.search(r"--model.micro_batch_size \d+", path.read_text())  # for adapters
            args += said[0].split() if said and options == LORA else []
            config = FitOptions(estimate, Estimate, args).config
            model, card = config.model, Estimate(gpu=gpu)
            teacher = teacher or outline(model.teacher, resolution=resolution)
            run = PlannedRun(plan_of(config, number), teacher, known)
            seconds = iteration_seconds(run, card.speed(run.plan))
            found.append(
                {
                    "config": path.stem,
                    "teacher": model.teacher,
                    "resolution": resolution,
                    "trained": trained,
                    "gpu": gpu,
                    "gpus": number,
                    "usable_gib": card.usable_bytes / GIB,
                    "precision": run.plan.precision,
                    "batch_size": run.plan.batch_size,
                    "micro_batch_size": run.plan.micro_batch_size,
                    "iterations": config.trainer.max_steps,
                    "memory_gib": total_bytes(run) / GIB,
                    "hours": config.trainer.max_steps * seconds / 3600,
                }
            )
            print(*(found[-1][name] for name in ("config", "resolution", "memory_gib", "hours")))
    return found


if __name__ == "__main__":
    file = REPOSITORY / "results" / "estimates" / "teachers.json"
    known = json.loads(file.read_text()) if sys.argv[1:] else []
    every: list[dict[str, Any]] = []
    for path in sorted(CONFIGS.glob("teacher/*.yaml")):
        kept = [row for row in known if row["config"] == path.stem]
        every += kept if sys.argv[1:] and path.stem not in sys.argv else rows(path)
    file.write_text(json.dumps(every, indent=1) + "\n")
