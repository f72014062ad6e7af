"""Estimates of memory and hours, and measurements of speed."""

from typing import Any

from docs.tables.blocks import named, stored, table


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
