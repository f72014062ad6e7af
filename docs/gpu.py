"""Measure on a GPU what docs/results/benchmarks.md lacks.

`python docs/gpu.py --minutes 10` runs one case after the other and writes each result as it comes
to runs/gpu/. It skips a case whose file is there. `--list` shows the cases with what
`estimate` predicts. `--small` runs every case on a CPU with small networks, to try the script.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
OUTPUT = REPOSITORY / "runs" / "gpu"
LORA = (
    *("--model.lora.fake_score.rank=64", "--model.lora.generator.rank=64"),
    "--model.memory.frozen_precision=bf16",
)
BF16 = "--trainer.precision=bf16-mixed"
COMPILED = (BF16, "--model.compute.compile=true")
TUNED = {"TORCHINDUCTOR_MAX_AUTOTUNE": "1", "TORCHINDUCTOR_COORDINATE_DESCENT_TUNING": "1"}


class Case(NamedTuple):
    """One run of `benchmark` with a batch of one micro-batch.

    Attributes:
        name: Name of the result's file.
        teacher: An architecture.
        size: The micro-batch.
        options: Further options of `fit`.
        minutes: How long it may take.
        environment: Environment variables.
    """

    name: str
    teacher: str
    size: int
    options: tuple[str, ...]
    minutes: float
    environment: Mapping[str, str] = MappingProxyType({})


def large(teacher: str, size: int, minutes: float, *options: str) -> Case:
    """Return a case of a large teacher at 1024 px, with all weights or adapters."""
    config = f"--config=configs/teacher/{teacher}.yaml", "--model.loading.revision=null"
    name = f"{teacher}_{'lora' if options else 'all'}"
    return Case(name, teacher, size, (*config, *options), minutes)


# In the order of what is worth knowing. A compiled network takes some 5 minutes for the first time.
CASES = [
    Case("sd15_fp32", "sd15", 8, (), 2),
    Case("sd15_bf16_lean", "sd15", 32, (BF16, "--model.memory.activations=lean"), 2),
    Case("sd15_bf16_balanced", "sd15", 16, (BF16, "--model.memory.activations=balanced"), 2),
    large("sana-1.6b", 4, 3),
    large("sdxl", 4, 3, *LORA),
    large("sd35-medium", 4, 3, *LORA),
    large("flux-dev", 1, 4, *LORA),
    large("sdxl", 4, 4),
    Case("sd15_compile", "sd15", 16, COMPILED, 7),
    Case("sd15_compile_4", "sd15", 4, COMPILED, 7),
    Case("sd15_compile_tuned", "sd15", 16, COMPILED, 9, TUNED),
]


def arguments(case: Case, small: bool) -> list[str]:
    """Return the options of `fit` for a case."""
    family = case.teacher.split("-")[0]
    teacher, size = (f"{family}-small", 1) if small else (case.teacher, case.size)
    return [
        *("--config=configs/lsg.yaml", *case.options),
        *(f"--model.teacher=architecture:{teacher}", f"--data.batch_size={size}"),
        f"--model.micro_batch_size={size}",
        *(("--trainer.accelerator=cpu", "--model.resolution=64") if small else ()),
    ]


def measure(case: Case, output: Path, small: bool) -> str:
    """Run a case; return how it ended. What it has measured by then is kept."""
    command = [sys.executable, "-m", "sid_lsg", "benchmark", *arguments(case, small)]
    command += [f"--benchmark.output={output}", "--benchmark.search=false"]
    if small:
        command += ["--benchmark.iterations=1", "--benchmark.warmup=1"]
    try:
        environment = {**os.environ, **case.environment}
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            env=environment,
            timeout=60 * case.minutes * (10 if small else 1),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "cut"
    return "done" if done.returncode == 0 else f"failed with status {done.returncode}"


def predict(case: Case, small: bool) -> str:
    """Return the GiB and the images per second that `estimate` counts for a case on an H200."""
    output = OUTPUT / "prediction.json"
    command = [sys.executable, "-m", "sid_lsg", "estimate", *arguments(case, small)]
    command += ["--estimate.gpu=h200", "--estimate.gpus=1", f"--estimate.output={output}"]
    subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    found = json.loads(output.read_text())["options"][0]
    output.unlink()
    speed = case.size / found["seconds_per_iteration"]
    return f"{found['memory_gib']:.1f} GiB, {speed:.2f} images/s"


def main() -> None:
    """Run or list the cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="for all cases together")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("names", nargs="*", help="cases; by default all")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        output = OUTPUT / f"{'small_' * options.small}{case.name}.json"
        if options.names and case.name not in options.names:
            continue
        if options.list:
            print(case.name, predict(case, options.small))
        elif output.exists():
            print(case.name, "is there")
        elif time.monotonic() + 60 * case.minutes > end:
            print(case.name, f"does not fit in the time: it may take {case.minutes} minutes")
        else:
            print(case.name, measure(case, output, options.small), flush=True)


if __name__ == "__main__":
    main()
