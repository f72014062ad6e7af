"""Measure the demo's speed beside busy programs, by how its threads wait for each other.

    python -m sid_lsg.benchmark.busy

takes about four minutes on two cores. Each setting has a process of its own, and all take turns, so
that changes of the machine's speed affect them alike. It writes results/benchmarks/busy_machine.*.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, cast

from sid_lsg.distributed.threads import watch_load
from sid_lsg.files.replacing import replacing

SETTINGS: dict[str, dict[str, str]] = {
    "one thread": {"OMP_NUM_THREADS": "1"},
    "all cores, always spinning": {"GOMP_SPINCOUNT": "300000"},  # libgomp's default
    "all cores, never spinning": {"OMP_WAIT_POLICY": "passive"},
    "all cores, spinning on a quiet machine": {},
}
"""Variables of the environment; the last setting is that of the command line."""

_OTHERS = ("OMP_", "GOMP_", "MKL_")
_BUSY = "import time\nend = time.monotonic() + 120\nwhile time.monotonic() < end: pass"
_BATCH = 64
Turns = dict[int, dict[str, list[float]]]


def main() -> None:
    """Measure all settings in turns, and write the results after each round."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks/busy_machine.json"))
    parser.add_argument("--busy", type=int, nargs="*", default=[0, 2], metavar="PROGRAMS")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=3, help="of a turn")
    parser.add_argument("--settle", type=float, default=4, help="seconds before each turn")
    options = parser.parse_args()
    turns: Turns = {number: {name: [] for name in SETTINGS} for number in options.busy}
    with ExitStack() as stack:
        runs = {name: stack.enter_context(_run(own)) for name, own in SETTINGS.items()}
        for run in runs.values():
            _turn(run, 0, 0)  # the first iteration is slower
        print("measuring", flush=True)
        for _ in range(options.rounds):
            for number, found in turns.items():
                with _programs(number):
                    for name, run in runs.items():
                        found[name].append(_turn(run, options.settle, options.seconds))
            _save(_result(turns), options.output)
    print(options.output.with_suffix(".md").read_text(encoding="utf-8"))


@contextmanager
def _run(own: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Start a run with variables of the environment; it waits for turns within the context."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(_OTHERS)}
    run = subprocess.Popen(
        [sys.executable, "-c", "from sid_lsg.benchmark.busy import train; train()"],
        env=others | dict(own),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield run
    finally:
        run.kill()
        run.wait()


@contextmanager
def _programs(number: int) -> Iterator[None]:
    """Keep processors busy with programs within the context."""
    programs = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(number)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def _turn(run: subprocess.Popen[str], settle: float, seconds: float) -> float:
    """Return the images per second of a turn, after some seconds that do not count."""
    asked, said = cast(IO[str], run.stdin), cast(IO[str], run.stdout)
    asked.write(f"{settle} {seconds}\n")
    asked.flush()
    for line in said:
        if line.startswith("images/s "):
            return float(line.split()[1])
    raise RuntimeError("the measured run ended")


def train() -> None:
    """Train the demo; wait for each turn's seconds on the standard input, and print its speed."""
    watch_load()
    from functools import partial

    import lightning as L

    from sid_lsg.benchmark.runs import fit
    from sid_lsg.optimizers import AdamWithoutMomentum
    from sid_lsg.options.guidance import Guidance
    from sid_lsg.training.module import SiDLSG

    class Turn(L.Callback):
        def __init__(self) -> None:
            self.start, self.end, self.images = 0.0, 0.0, -1

        def on_train_batch_start(self, *_: Any) -> None:
            now = time.perf_counter()
            if self.images < 0:
                self._wait()
            elif self.start == 0 and now >= self.settled:
                self.start, self.end, self.images = now, now + self.seconds, 0
            elif self.start and now >= self.end and self.images:
                print(f"images/s {self.images / (now - self.start)}", flush=True)
                self._wait()

        def on_train_batch_end(self, *_: Any) -> None:
            self.images += _BATCH

        def _wait(self) -> None:
            line = sys.stdin.readline()
            settle, self.seconds = map(float, line.split()) if line else sys.exit()
            self.settled, self.start, self.images = time.perf_counter() + settle, 0.0, 0

    optimizer: Any = partial(AdamWithoutMomentum, lr=5e-5)
    module = SiDLSG(
        "package:demo/fashion",
        guidance=Guidance(preset="none"),
        optimizer_fake=optimizer,
        optimizer_generator=optimizer,
    )
    fit(module, _BATCH, 1_000_000, [Turn()], accelerator="cpu")


def _result(turns: Turns) -> dict[str, Any]:
    from sid_lsg.benchmark.machine import processor

    medians = {
        number: {name: statistics.median(values) for name, values in found.items()}
        for number, found in turns.items()
    }
    return {
        "teacher": "package:demo/fashion",
        "machine": {"device": processor(), "cores": os.cpu_count()},
        "variables": SETTINGS,
        "images_per_s": medians,
        "of_one_thread": {
            number: {name: value / found["one thread"] for name, value in found.items()}
            for number, found in medians.items()
        },
        "turns": turns,
    }


def _save(result: Mapping[str, Any], output: Path) -> None:
    columns = [*result["images_per_s"]]
    head = ["threads", *(f"{number} busy programs" for number in columns)]
    rows = [
        [
            name,
            *(
                f"{result['images_per_s'][n][name]:.1f} ({result['of_one_thread'][n][name]:.0%})"
                for n in columns
            ),
        ]
        for name in SETTINGS
    ]
    lines = [head, ["---"] * len(head), *rows]
    text = (
        f"# The demo beside busy programs, on {result['machine']['cores']} cores of "
        f"{result['machine']['device']}\n\nMedian images/s, and the share of one thread's, of "
        "turns that alternate.\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    for suffix, content in ((".json", json.dumps(result, indent=1) + "\n"), (".md", text)):
        with replacing(output.with_suffix(suffix)) as temporary:
            temporary.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
