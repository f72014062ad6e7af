"""The README's figures are those of the stored run, and its links lead somewhere."""

import json
import re
from typing import Any

from tests.helpers.paths import REPOSITORY

README = (REPOSITORY / "README.md").read_text()


def test_the_table_is_the_stored_runs() -> None:
    summary = json.loads((REPOSITORY / "docs/demo_latest.json").read_text())
    table = {}
    for line in README.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 7 and re.match(r"teacher,|untrained,|SiD-LSG,", cells[0]):
            table[cells[0].split(",")[0]] = cells[1:]
    assert table.keys() == {"teacher", "untrained", "SiD-LSG"}
    for name, prefix in (("teacher", "teacher_"), ("untrained", "initial_"), ("SiD-LSG", "")):
        *scores, seconds, evaluations = table[name]
        for shown, score in zip(scores, ("fid", "clip_score", "precision", "recall"), strict=True):
            assert shown == f"{summary[f'{prefix}{score}_clip_2k']:.3f}"
        assert seconds == f"{summary[f'{prefix}seconds_per_image']:.4f}"
        assert evaluations == str(summary[f"{prefix}evaluations_per_image"])
    assert f"{summary['fit_seconds']:.0f} s" in README
    assert f"{summary['iterations']} iterations" in README


def test_the_demo_does_what_the_project_promises() -> None:
    first, latest = (
        json.loads((REPOSITORY / f"docs/{name}.json").read_text())
        for name in ("demo", "demo_latest")
    )
    for summary in (first, latest):
        assert summary["fid_clip_2k"] <= 1.2 * summary["teacher_fid_clip_2k"]
        assert summary["clip_score_clip_2k"] >= summary["teacher_clip_score_clip_2k"] - 0.01
    assert first["fit_seconds"] <= 300
    for name, summary in (("demo", first), ("demo_latest", latest)):
        assert f"{summary['fit_seconds']:.0f} s" in README
        assert f"docs/{name}.json" in README
    assert f"another generator of the same kind: FID {first['fid_clip_2k']:.3f})" in README


def test_the_guidance_table_is_the_stored_report() -> None:
    """And shows the trade-off: FID is lowest between, and CLIP rises with guidance."""
    stored = (REPOSITORY / "docs/guidance.md").read_text()
    rows = {}
    for line in stored.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0].startswith("guidance "):
            rows[float(cells[0].split()[1])] = cells[1:]
    assert list(rows) == [1, 1.2, 1.5, 2, 3, 4.5]
    fids, clips = ([float(row[place]) for row in rows.values()] for place in (0, 6))
    assert min(fids) not in (fids[0], fids[-1])
    assert clips == sorted(clips)
    for scale, fid, clip in zip(rows, fids, clips, strict=True):
        assert f"| {scale:g} | {fid:.3f} | {clip:.3f} |" in README


def test_the_speeds_are_the_stored_measurements() -> None:
    seconds = {}
    for machine, name in (
        ("AMD EPYC", "cpu"),
        ("Intel Xeon", "xeon"),
        ("Intel Xeon, 150 turns in place of 60", "xeon_long"),
        ("Intel Xeon, `--model.compile true`", "xeon_compile"),
    ):
        stored = REPOSITORY / f"docs/benchmarks/comparison_tiny_{name}.json"
        compared = json.loads(stored.read_text())["comparison"]
        seconds[name] = compared["iterations"]
        with_it, without = (
            compared[f"ratio{which}"]["median"] for which in ("", "_without_garbage_collection")
        )
        assert f"| {machine} | {with_it:.2f} | {without:.2f} |" in README
    apart = seconds["xeon"]["baseline"]["median"] / seconds["xeon_compile"]["ours"]["median"]
    assert f"would be {apart:.2f}" in " ".join(README.split())
    for name, batch, sentence in (
        ("tiny", 16, "{:.0%} is inside the networks"),
        ("demo", 64, "({:.0%} in the demo;"),
    ):
        stored = json.loads((REPOSITORY / f"docs/benchmarks/{name}_cpu.json").read_text())
        (row,) = [row for row in stored["settings"] if row["micro_batch_size"] == batch]
        parts = [item for phase in row["parts_seconds"].values() for item in phase.items()]
        networks = {"generator", "fake score", "teacher", "backward"}
        inside = sum(seconds for part, seconds in parts if part in networks)
        assert sentence.format(inside / sum(seconds for _, seconds in parts)) in README
    own = row["operators"]  # of the demo
    whole = sum(kind["seconds"] for kind in own.values())
    products = [own[kind] for kind in ("convolutions", "matrix products")]
    seconds, flops = (sum(kind[what] for kind in products) for what in ("seconds", "flops"))
    speed = flops / seconds / row["ceiling_flops_per_s"]
    said = " ".join(README.split())
    assert f"profile {1 - own['Python and launches']['seconds'] / whole:.0%} is inside" in said
    assert f"{seconds / whole:.0%} in convolutions and matrix products at {speed:.0%} of" in said


def test_the_ways_to_use_memory_are_the_stored_measurements() -> None:
    stored = json.loads((REPOSITORY / "docs/benchmarks/demo_memory_cpu.json").read_text())
    rows = stored["settings"]
    first = rows[0]["memory_bytes"]["activations"]
    assert rows[0]["memory"] == "fast"
    for row in rows:
        memory, _, again = row["memory"].partition("-")
        name = f"`{memory}`" + (", all networks checkpointed" if again else "")
        held = row["memory_bytes"]["activations"]
        numbers = f"{held / 2**30:.3f} | {held / first:.0%} | {row['images_per_s']:.1f}"
        assert f"| {name} | {numbers} |" in README
    ceilings = [row["ceiling_flops_per_s"] for row in rows]
    assert f"varied by {max(ceilings) / min(ceilings) - 1:.0%} meanwhile" in README


def test_the_gpus_speeds_are_the_stored_measurements() -> None:
    def stored(name: str) -> Any:
        return json.loads((REPOSITORY / f"docs/benchmarks/sd15_h200_{name}.json").read_text())

    official = stored("official")["comparison"]["iterations"]["baseline"]["median"]
    assert f"official code | 4 | {4 / official:.2f} |" in README
    speeds = {}
    for name, sizes, shown in (
        ("fp32", (4,), "fp32 (no TF32)"),
        ("tf32", (8,), "TF32"),
        ("bf16", (8,), "bf16-mixed"),
        ("bf16_batches", (1, 4, 16), "bf16-mixed"),
        ("bf16_compile", (16,), "bf16-mixed, `--model.compile true`"),
    ):
        rows = {row["micro_batch_size"]: row for row in stored(name)["settings"]}
        for size in sizes:
            row = rows[size]
            numbers = f"{row['images_per_s']:.3g} | {row['flops_per_s'] / 1e12:.3g}"
            line = f"| {shown} | {size} | {numbers} | {row['share_of_ceiling']:.0%} |"
            if name != "bf16_compile":  # whose memory was measured of the networks as written
                line += f" {row['memory_bytes']['allocator'] / 2**30:.1f} |"
            assert line in README
            speeds[name] = row["images_per_s"]
    assert f"**{speeds['bf16_compile'] * official / 4:.1f} times**" in README
    assert f"{speeds['bf16_batches'] * official / 4:.1f} times without compiling" in README
    equal = stored("official")["comparison"]
    ratios = (equal[f"ratio{which}"]["median"] for which in ("", "_without_garbage_collection"))
    assert "makes {:.2f} times the official manner's iterations there, and {:.2f} times".format(
        *ratios
    ) in " ".join(README.split())
    operators = stored("bf16_batches")["settings"][-1]["operators"]
    ceiling = stored("bf16_batches")["settings"][-1]["ceiling_flops_per_s"]
    for kind, share in (("convolutions", 101), ("matrix products", 88), ("attention", 37)):
        own = operators[kind]
        assert round(100 * own["flops"] / own["seconds"] / ceiling) == share
        assert f"{share}%" in README


def test_the_hours_of_the_papers_config_are_its_headers() -> None:
    header = (REPOSITORY / "configs/paper/sd15_kappa2.yaml").read_text()
    hours = re.search(r"Estimated: (\d+) H200-hours.*?not compiled (\d+);", header, re.DOTALL)
    assert hours
    assert f"in its header: {hours[1]} on an H200" in README
    assert f"({hours[2]} not compiled; " in README


def test_links_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    local = [link for link in links if not link.startswith("http")]
    assert "docs/demo.png" in local
    for link in local:
        assert (REPOSITORY / link).is_file(), link
