"""Write the tables of the documentation that are made of stored measurements.

`python docs/tables.py` (or `make tables`) renews what stands in README.md and the pages of docs/
between `<!-- generated: NAME -->` and `<!-- end -->`. The tests check that nothing would change.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

DOCS = Path(__file__).parent
REPOSITORY = DOCS.parent
RESULTS = REPOSITORY / "results"
MARK = "<!-- generated: "
BLOCK = re.compile(r"^(<!-- generated: ([\w ]+) -->\n).*?(?=^<!-- end -->$)", re.DOTALL | re.M)
SCORES = ["FID", "CLIP", "precision", "recall"]
TABLES: dict[str, Callable[[], str]] = {}
PAGES = [REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md"))]
FILES = [path for path in PAGES if MARK in path.read_text()]


def named(name: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Register a function as the one that makes the table of this name."""

    def register(make: Callable[[], str]) -> Callable[[], str]:
        TABLES[name] = make
        return make

    return register


def renewed(text: str) -> str:
    """Return a document with each of its tables made again."""
    return BLOCK.sub(lambda block: block[1] + TABLES[block[2]](), text)


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    """Format a Markdown table."""
    lines = ["".join(f"| {cell} " if cell else "| " for cell in row) for row in (header, *rows)]
    lines.insert(1, "|---" * len(header))
    return "".join(f"{line}|\n" for line in lines)


def stored(name: str) -> Any:
    """Read results/NAME.json."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def cells(path: str) -> list[list[str]]:
    """Read the rows of all tables of a file in docs/, without headers."""
    lines = (DOCS / path).read_text().splitlines()
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines if line[:1] == "|"]
    return [row for row in rows if row[0] != "series" and set(row[0]) != {"-"}]


# ---------------------------------------------------------------------- README


@named("demo")
def demo() -> str:
    """Return the scores that `make demo` printed."""
    rows = (
        ("teacher, 25 steps", "teacher_", ""),
        ("untrained, 1 step", "initial_", ""),
        ("SiD-LSG, 1 step", "", ""),
    )
    return comparison("demo_latest", rows)


@named("demo flow")
def demo_flow() -> str:
    """Return the scores that the demo of the flow-matching teacher printed."""
    rows = (
        ("teacher, 28 steps", "teacher_", ""),
        ("untrained, 4 steps", "initial_", ""),
        ("SiD-LSG, 1 step", "", "_1_step"),
        ("SiD-LSG, 2 steps", "", "_2_steps"),
        ("SiD-LSG, 4 steps", "", ""),
    )
    return comparison("demo_flow", rows)


@named("guidance flow")
def guidance_flow() -> str:
    """Return the scores of the flow-matching teacher at several guidance scales."""
    names = [f"{score}_clip_500" for score in ("fid", "clip_score", "precision", "recall")]
    rows = [
        [f"{row['guidance']:g}", *(f"{row[name]:.3f}" for name in names)]
        for row in stored("demo_flow_guidance")
    ]
    return table(["guidance", *SCORES], rows)


def comparison(run: str, rows: Iterable[tuple[str, str, str]]) -> str:
    """Return the table that a run printed: (name, prefix and suffix of its scores) per row."""
    summary, cells = stored(run), []
    keys = [f"{score}_clip_2k" for score in ("fid", "clip_score", "precision", "recall")]
    for name, prefix, suffix in rows:
        scores = [f"{summary[f'{prefix}{key}{suffix}']:.3f}" for key in keys]
        seconds = f"{summary[f'{prefix}seconds_per_image{suffix}']:.4f}"
        nfe = str(summary[f"{prefix}evaluations_per_image{suffix}"])
        cells.append([name, *scores, seconds, nfe])
    return table(["", *SCORES, "s/image", "NFE"], cells)


@named("fit")
def fit() -> str:
    """Return the memory that `estimate` counts for Stable Diffusion 1.5."""
    rows = []
    for name, config in (
        ("gpu", "`configs/trainer/gpu.yaml`"),
        ("gpu_lean", "the same with `--model.memory.activations lean`"),
        ("24gb", "`configs/trainer/24gb.yaml`"),
    ):
        counted = stored(f"estimates/sd15_{name}")
        first = counted["options"][0]
        size = str(counted["micro_batch_size"])
        rows.append([config, size, f"{first['memory_gib']:.1f}"])
    return table(["config", "micro-batch", "GiB on the device"], rows)


@named("large teachers")
def large_teachers() -> str:
    """Return what `estimate` counts for the configs in configs/teacher/."""
    cases = [("all weights", "h100", number) for number in (1, 8, 64)]
    cases += [("LoRA", gpu, 1) for gpu in ("h100", "3090")]
    counted = stored("estimates/teachers")
    rows = []
    for name, side in dict.fromkeys((row["config"], row["resolution"]) for row in counted):
        cells = []
        for case in cases:
            wanted = (name, side, *case)
            keys = ("config", "resolution", "trained", "gpu", "gpus")
            row = next((row for row in counted if tuple(map(row.get, keys)) == wanted), None)
            if row is None:
                cells.append("")
                continue
            hours = row["hours"] / row["batch_size"] / row["iterations"] * 1e6
            fits = row["memory_gib"] < row["usable_gib"]
            cells.append(f"{row['memory_gib']:.1f} ({hours:.0f} h)" if fits else "too much")
        rows.append([f"`teacher/{name}.yaml`", str(side), *cells])
    devices = ["1 x 80 GB", "8 x 80 GB", "64 x 80 GB", "LoRA, 80 GB", "LoRA, 24 GB"]
    return table(["config", "px", *devices], rows)


@named("speed")
def speed() -> str:
    """Return the speeds on one H200 that the README shows."""
    base, plain, compiled = (
        official_speed(),
        gpu_row("bf16_batches", 16)["images_per_s"],
        gpu_row("bf16_compile", 16)["images_per_s"],
    )
    rows = [
        [name, size, f"{speed:.3g}", f"{speed / base:.1f}x"]
        for name, size, speed in (
            ("fp32, in the manner of the official code", "4", base),
            ("bf16-mixed", "16", plain),
            ("bf16-mixed, `--model.compute.compile true`", "16", compiled),
        )
    ]
    return table(["precision", "micro-batch", "images/s", "speed"], rows)


@named("memory")
def memory() -> str:
    """Return the memory and the speed of each `--model.memory`."""
    measured = stored("benchmarks/demo_memory_cpu")["settings"]
    first = measured[0]["memory_bytes"]["activations"]
    rows = []
    for row in measured:
        name, _, again = row["memory"].partition("-")
        held = row["memory_bytes"]["activations"]
        name = f"`{name}`" + (", all networks checkpointed" if again else "")
        numbers = [f"{held / 2**30:.3f}", f"{held / first:.0%}", f"{row['images_per_s']:.1f}"]
        rows.append([name, *numbers])
    return table(["memory", "activations at the peak, GiB", "of `fast`", "images/s"], rows)


@named("official manner")
def official_manner() -> str:
    """Return our speed in multiples of the baseline's."""
    rows = []
    for machine, name in (
        ("AMD EPYC", "cpu"),
        ("Intel Xeon", "xeon"),
        ("Intel Xeon, 150 turns in place of 60", "xeon_long"),
        ("Intel Xeon, `--model.compute.compile true`", "xeon_compile"),
    ):
        rows.append([machine, *ratios(f"benchmarks/comparison_tiny_{name}")])
    start = "iterations per CPU second, times the official manner's"
    return table([start, "with its garbage collection", "without"], rows)


@named("busy machine")
def busy_machine() -> str:
    """Return the demo's speed beside busy programs, by how its threads wait."""
    found = stored("benchmarks/busy_machine")
    speeds, shares = found["images_per_s"], found["of_one_thread"]
    rows = [
        [name, *(f"{speeds[n][name]:.1f} ({shares[n][name]:.0%})" for n in speeds)]
        for name in found["variables"]
    ]
    return table(["threads", *(f"{n} busy programs" for n in speeds)], rows)


@named("gpu")
def gpu() -> str:
    """Return the speeds of Stable Diffusion 1.5 on one H200."""
    rows = [
        ["fp32, in the manner of the official code", "4", f"{official_speed():.2f}", "", "", ""]
    ]
    for name, sizes, shown in (
        ("fp32", (4,), "fp32 (no TF32)"),
        ("tf32", (8,), "TF32"),
        ("bf16_batches", (1, 4), "bf16-mixed"),
        ("bf16", (8,), "bf16-mixed"),
        ("bf16_batches", (16,), "bf16-mixed"),
        ("bf16_compile", (16,), "bf16-mixed, `--model.compute.compile true`"),
    ):
        for size in sizes:
            row = gpu_row(name, size)
            # With compilation, the memory was measured of the networks as written.
            held = row["memory_bytes"]["allocator"] / 2**30 if name != "bf16_compile" else None
            numbers = [f"{row['images_per_s']:.3g}", f"{row['flops_per_s'] / 1e12:.3g}"]
            numbers += [f"{row['share_of_ceiling']:.0%}", "" if held is None else f"{held:.1f}"]
            rows.append([shown, str(size), *numbers])
    header = ["precision", "micro-batch", "images/s", "TFLOP/s", "of the ceiling", "peak GiB"]
    return table(header, rows)


@named("guidance")
def guidance() -> str:
    """Return the teacher's scores by guidance scale."""
    rows = []
    for row in cells("results/guidance.md"):
        if row[0].startswith("guidance "):
            scores = [f"{float(row[place]):.3f}" for place in (1, 7, 3, 4)]
            rows.append([row[0].removeprefix("guidance "), *scores])
    return table(["guidance", *SCORES], rows)


@named("configs")
def configs() -> str:
    """Return what each config is for, as its header says."""
    paths = sorted((REPOSITORY / "configs").rglob("*.yaml"))
    paths = [path for path in paths if path.parent.name != "paper"]
    rows = [[config_link(path), purpose(header(path))] for path in paths]
    return table(["config", "what it is for"], rows)


@named("paper")
def paper() -> str:
    """Return the published rows, and what a run of each is estimated to take."""
    rows = []
    for path in sorted((REPOSITORY / "configs/paper").glob("*.yaml")):
        text = header(path)
        found = re.search(
            r"Images seen: ([\d.]+ M).*Published: FID ([\d.]+), CLIP ([\d.]+) "
            r".*Estimated: (\d+) H200-hours",
            text,
        )
        assert found, path
        rows.append([config_link(path), purpose(text), *found.groups()])
    return table(["config", "row", "images seen", "FID", "CLIP", "H200-hours"], rows)


def header(path: Path) -> str:
    """Return the comment at the head of a config, in one line."""
    lines = re.match(r"(#.*\n)+", path.read_text())
    assert lines, path
    return " ".join(line.removeprefix("#").strip() for line in lines[0].splitlines())


def purpose(text: str) -> str:
    """Return the first sentence of a header."""
    return re.split(r"(?<=[.?])\s", text, maxsplit=1)[0]


def config_link(path: Path) -> str:
    """Return a link from a page of docs/reference/ to a config."""
    name = path.relative_to(REPOSITORY / "configs").as_posix()
    return f"[{name}](../../configs/{name})"


def ratios(name: str) -> list[str]:
    """Return our iterations per baseline's, with its garbage collection and without."""
    compared = stored(name)["comparison"]
    kinds = ("ratio", "ratio_without_garbage_collection")
    return [f"{compared[kind]['median']:.2f}" for kind in kinds]


def gpu_row(name: str, micro_batch: int) -> Any:
    """Return the measurements of one micro-batch size on the H200."""
    rows = stored(f"benchmarks/sd15_h200_{name}")["settings"]
    (found,) = (row for row in rows if row["micro_batch_size"] == micro_batch)
    return found


def official_speed() -> float:
    """Return the baseline's images per second on the H200."""
    compared = stored("benchmarks/sd15_h200_official")["comparison"]
    return float(4 / compared["iterations"]["baseline"]["median"])


# ---------------------------------------------------------------------- findings.md

HALVES = "both learning rates 5e-5"
STUDIES: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "long": (
        "",
        [
            ("teacher, guidance 1, 25 steps", "long/teacher/guidance 1/25"),
            ("SiD-LSG, kappa 1, 1 step, 64,000 images", "long/none/1/1"),
            ("teacher, guidance 1.2, 25 steps (its best FID)", "long/teacher/guidance 1.2/25"),
        ],
    ),
    "prompts": (
        "trained on",
        [
            ("all captions", "prompts/prompts/all captions/1"),
            ("a tenth of them", "prompts/prompts/a tenth/1"),
            ("words dropped (30%)", "prompts/prompts/words dropped/1"),
            ("words shuffled", "prompts/prompts/words shuffled/1"),
        ],
    ),
    "unseen pairs": (
        "trained on",
        [
            ("the other 60 pairs", "prompts/unseen pairs/never trained on/1"),
            ("all pairs", "prompts/unseen pairs/trained on/1"),
            ("(teacher, 25 steps)", "prompts/teacher/guidance 1.2/25"),
        ],
    ),
    "limits": (
        "",
        [
            (f"the paper's settings, {HALVES}", "limits/t_init/625/1"),
            *((f"t_init {n}", f"limits/t_init/{n}/1") for n in (500, 750, 875)),
            ("timesteps from 1", "limits/tmin/1/1"),
            *((f"from {n}", f"limits/tmin/{n}/1") for n in (100, 200)),
            *((f"up to {n}", f"limits/tmax/{n}/1") for n in (600, 800)),
            *(
                (f"{name} {n.replace('.0', '')}", f"limits/{name}/{n}/1")
                for name, each in (
                    ("fake score's learning rate", ("2.0e-5", "1.0e-4", "2.0e-4")),
                    ("generator's learning rate", ("1.0e-5", "2.0e-5")),
                )
                for n in each
            ),
        ],
    ),
    "real images": (
        "",
        [
            ("data-free", "real_data/data-free/off/1"),
            *(
                (weights, f"real_data/real images/{weights}/1")
                for weights in ("1, 0.0001", "30, 0.01", "100, 0.1")
            ),
            ("(teacher, 25 steps)", "real_data/teacher/guidance 1/25"),
        ],
    ),
}  # name: (the header of the first column, [(label, study/series/point/steps)])


def scores(place: str) -> list[str]:
    """Return FID, CLIP, precision and recall of one STUDY/SERIES/POINT/STEPS.

    Of several with that name, scored with different prompts, the last. These are means over the
    seeds; the spread is stated once, in the table `seeds`.
    """
    study, *key = place.split("/")
    *_, row = (row for row in cells(f"results/{study}/results.md") if row[:3] == key)
    return [cell.partition(" ± ")[0] for cell in row[5:]]


def of_studies(name: str) -> Callable[[], str]:
    """Return what makes the table of this name in STUDIES."""
    header, rows = STUDIES[name]
    return lambda: table([header, *SCORES], ([label, *scores(place)] for label, place in rows))


TABLES |= {name: of_studies(name) for name in STUDIES}


@named("seeds")
def seeds() -> str:
    """Return the median and the largest standard deviation over seeds, of all studies' points."""
    points = [
        [cell.partition(" ± ")[2] for cell in row[5:]]
        for path in sorted(DOCS.glob("results/*/results.md"))
        for row in cells(str(path.relative_to(DOCS)))
    ]
    spreads = [sorted(map(float, filter(None, score))) for score in zip(*points, strict=True)]
    rows = [
        [f"median of {len(spreads[0])} points", *(f"{median(s):.3f}" for s in spreads)],
        ["largest", *(f"{s[-1]:.3f}" for s in spreads)],
    ]
    return table(["standard deviation over seeds", *SCORES], rows)


@named("kappa")
def kappa() -> str:
    """Return the scores of long and short guidance at several scales beside the teacher's."""
    rows = []
    for scale in ("1", "1.2", "1.5", "2", "3", "4.5"):
        fid, clip, *rest = scores(f"kappa/LSG/{scale}/1")
        teacher_fid, teacher_clip, *_ = scores(f"kappa/teacher/guidance {scale}/25")
        rows.append([scale, fid, teacher_fid, clip, teacher_clip, *rest])
    teacher = ["teacher's, 25 steps", "CLIP, 1 step", "teacher's"]
    return table(["kappa", "FID, 1 step", *teacher, "precision", "recall"], rows)


@named("strategies")
def strategies() -> str:
    """Return the scores of the ways to guide."""
    rows = [row for row in cells("results/strategies/results.md") if row[0] != "teacher"]
    own = (
        [series, scale, count, *(cell.partition(" ± ")[0] for cell in each)]
        for series, scale, _, _, count, *each in rows
    )
    return table(["series", "scale", "seeds", *SCORES], own)


@named("steps")
def steps() -> str:
    """Return FID by the number of steps in training and in sampling."""
    counts = ["1", "2", "4", "8", "25"]
    rows = [["teacher", *(scores(f"steps/teacher/guidance 1.5/{n}")[0] for n in counts)]]
    for trained in ("1 step", "2 steps", "4 steps"):
        fids = [scores(f"steps/trained in/{trained}/{n}")[0] for n in counts[:3]]
        rows.append([f"trained in {trained}", *fids, "", ""])
    return table(["FID", *(f"{n} step{'s' * (n != '1')}" for n in counts)], rows)


# ---------------------------------------------------------------------- figures.md


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


if __name__ == "__main__":
    for file in FILES:
        file.write_text(renewed(file.read_text()))
