"""The single figures that texts quote."""

import csv
import re
from typing import Any

from docs.tables.blocks import REPOSITORY, RESULTS, named, stored, table
from docs.tables.costs import gpu_row, official_speed, ratios


@named("figures")
def figures() -> str:
    """Return the single figures that texts quote, each with the file it is computed from."""
    rows: list[list[str]] = []

    def add(what: str, value: str, source: str) -> None:
        rows.append([what, value, f"[{source}](../../{source})"])

    for name in ("demo_latest", "demo"):
        summary, source = stored(name), f"results/{name}.json"
        add("the demo's fit", f"{summary['fit_seconds']:.0f} s", source)
        add("its iterations", str(summary["iterations"]), source)
        add("its FID", f"{summary['fid_clip_2k']:.3f}", source)

    theirs, ours = "comparison_tiny_xeon", "comparison_tiny_xeon_compile"
    seconds = [stored(f"benchmarks/{name}")["comparison"]["iterations"] for name in (theirs, ours)]
    apart = seconds[0]["baseline"]["median"] / seconds[1]["ours"]["median"]
    what = "compiled iterations per CPU second, times the official manner's without the compiler"
    add(what, f"{apart:.2f}", f"results/benchmarks/{ours}.json")

    for name, batch in (("tiny", 16), ("demo", 64)):
        source = f"benchmarks/{name}_cpu"
        (row,) = (r for r in stored(source)["settings"] if r["micro_batch_size"] == batch)
        share = f"{inside_networks(row):.0%}"
        add(f"share of an iteration inside the networks, {name}", share, f"results/{source}.json")
    products, speed = operators(row)
    what = "the same by the profile: inside PyTorch's operators"
    add(what, in_operators(row), f"results/{source}.json")
    add("of that, convolutions and matrix products", f"{products:.0%}", f"results/{source}.json")
    add("their speed, of the ceiling", f"{speed:.0%}", f"results/{source}.json")

    source = "benchmarks/demo_memory_cpu"
    ceilings = [row["ceiling_flops_per_s"] for row in stored(source)["settings"]]
    varied = f"{max(ceilings) / min(ceilings) - 1:.0%}"
    add("how much the machine's own speed varied meanwhile", varied, f"results/{source}.json")

    for name, what in (("bf16_compile", "compiled"), ("bf16_batches", "not compiled")):
        times = f"{gpu_row(name, 16)['images_per_s'] / official_speed():.1f}"
        what = f"bf16-mixed on an H200, {what}, times the official manner in fp32"
        add(what, times, f"results/benchmarks/sd15_h200_{name}.json")
    source = "benchmarks/sd15_h200_official"
    for ratio, what in zip(ratios(source), ("with its", "without"), strict=True):
        what = f"fp32 on an H200, times the official manner {what} garbage collection"
        add(what, ratio, f"results/{source}.json")
    row = gpu_row("bf16_batches", 16)
    for kind in ("convolutions", "matrix products", "attention"):
        own = row["operators"][kind]
        share = own["flops"] / own["seconds"] / row["ceiling_flops_per_s"]
        source = "results/benchmarks/sd15_h200_bf16_batches.json"
        add(f"speed of {kind} in bf16 on an H200, of the ceiling", f"{share:.0%}", source)

    source = "configs/paper/sd15_kappa2.yaml"
    hours = re.search(
        r"Estimated: (\d+) H200-hours.*?not compiled (\d+);",
        (REPOSITORY / source).read_text(),
        re.DOTALL,
    )
    assert hours
    add("H200-hours of the paper's config, compiled", hours[1], source)
    add("not compiled", hours[2], source)

    for study, run, what in (
        ("settings", "batch-size-16-seed0", "batches of 16, seed 0"),
        ("strategies", "short-0.67-seed0", "short guidance at 0.67, seed 0"),
    ):
        source = f"results/{study}/evaluations.csv"
        fid = evaluations(f"{study}/{run}")[12_800]["fid_clip_2k"]
        add(f"FID of {what}", f"{float(fid):.3f}", source)
    found = [difference for pair in WHOLE.items() for difference in differences(*pair)]
    add("largest difference of FID between a GPU and a CPU", f"{max(found):.3f}", "results")
    same = f"{sum(difference < 2e-4 for difference in found)} of {len(found)}"
    add("evaluations on a GPU whose FID is the CPU's to 0.0002", same, "results")
    for run, images in (
        ("lsg-1.1", 51_200),
        ("lsg-1.2", 57_600),
        ("lsg-1.2", 19_200),
        ("faster-fake-score-1", 25_600),
        ("faster-fake-score-1.2", 19_200),
    ):
        fid = cut_runs()[f"long/{run}-seed0"][images]["fid_clip_2k"]
        what = f"FID of long/{run} after {images:,} images"
        add(what, f"{float(fid):.3f}", "results/cut_runs.csv")
    row = evaluations("long/none-1-seed0")[25_600]
    source = "results/long/evaluations.csv"
    add("FID of long/none-1 after 25,600 images", f"{float(row['fid_clip_2k']):.3f}", source)
    return table(["figure", "value", "computed from"], rows)


WHOLE = {
    "steps/trained-in-1-step": ("lsg-1.5", 3),
    "prompts/prompts-all-captions": ("lsg-1.2", 3),
    "limits/t-init-625": ("lsg-1.2", 2),
    "real_data/data-free-off": ("lsg-1", 3),
    "settings/alpha-1.0": ("lsg-1", 1),
}  # a run on a GPU: the run of the same config on a CPU, and the number of seeds


def evaluations(run: str) -> dict[int, dict[str, str]]:
    """Read the evaluations in one step of a run, STUDY/RUN, by the images seen."""
    study, name = run.split("/")
    with (RESULTS / study / "evaluations.csv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["model"] == name and r["num_steps"] == "1"]
    return {int(row["images_seen"]): row for row in rows}


def cut_runs() -> dict[str, dict[int, dict[str, str]]]:
    """Read the runs that were cut: the evaluations of each, by the images seen."""
    found: dict[str, dict[int, dict[str, str]]] = {}
    with (RESULTS / "cut_runs.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            name = f"{row['study']}/{row['run']}"
            found.setdefault(name, {})[int(row["images_seen"])] = row
    return found


def differences(run: str, other: tuple[str, int]) -> list[float]:
    """Compare the FID of a run on a GPU and on a CPU, at each evaluation of each seed."""
    found = []
    for seed in range(other[1]):
        gpu = evaluations(f"{run}-seed{seed}")
        cpu = evaluations(f"kappa/{other[0]}-seed{seed}")
        assert list(gpu) == list(cpu) == [3200, 6400, 9600, 12800]
        found += [abs(float(gpu[n]["fid_clip_2k"]) - float(cpu[n]["fid_clip_2k"])) for n in gpu]
    return found


def inside_networks(row: Any) -> float:
    """Return the share of an iteration's seconds that the networks take."""
    parts = [item for phase in row["parts_seconds"].values() for item in phase.items()]
    networks = {"generator", "fake score", "teacher", "backward"}
    inside = sum(seconds for part, seconds in parts if part in networks)
    return float(inside / sum(seconds for _, seconds in parts))


def in_operators(row: Any) -> str:
    """Return the share of a profile's seconds outside Python and launches."""
    own = row["operators"]
    whole = sum(kind["seconds"] for kind in own.values())
    return f"{1 - own['Python and launches']['seconds'] / whole:.0%}"


def operators(row: Any) -> tuple[float, float]:
    """Return the share of convolutions and matrix products, and their speed of the ceiling."""
    own = row["operators"]
    whole = sum(kind["seconds"] for kind in own.values())
    products = [own[kind] for kind in ("convolutions", "matrix products")]
    seconds, flops = (sum(kind[what] for kind in products) for what in ("seconds", "flops"))
    return seconds / whole, flops / seconds / row["ceiling_flops_per_s"]
