"""The tables of the studies, from their own tables in docs/results/."""

import csv
from collections.abc import Callable
from statistics import median

from docs import law
from docs.tables.blocks import DOCS, RESULTS, SCORES, TABLES, cells, named, table

HALVES = "both learning rates 5e-5"


STUDIES: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "long": (
        "",
        [
            ("teacher, guidance 1, 25 steps", "long/teacher/guidance 1/25"),
            ("SiD-LSG, kappa 1, 1 step, 64,000 images", "long/none/1/1"),
            ("teacher, guidance 1.2, 25 steps", "long/teacher/guidance 1.2/25"),
        ],
    ),
    "objective": (
        "loss",
        [
            ("score identity, no guidance", "strategies/none/1/1"),
            ("distribution matching", "objective/none/1/1"),
            ("score identity, long guidance 1.2", "strategies/long/1.2/1"),
            ("distribution matching", "objective/long/1.2/1"),
        ],
    ),
    "prompts": (
        "trained on",
        [
            ("all captions", "prompts/prompts/all captions/1"),
            ("a tenth of them", "prompts/prompts/a tenth/1"),
            ("10 of them", "prompts/prompts/ten/1"),
            ("3 of them", "prompts/prompts/three/1"),
            ("words dropped (30%)", "prompts/prompts/words dropped/1"),
            ("words shuffled", "prompts/prompts/words shuffled/1"),
            ("adjectives after their nouns", "prompts/prompts/adjectives last/1"),
            ("the background first", "prompts/prompts/background first/1"),
            ("three words: coat, red, navy", "prompts/prompts/tags/1"),
            ("paraphrased", "prompts/prompts/paraphrased/1"),
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
    return means(row)


def means(row: list[str]) -> list[str]:
    """Return FID, CLIP, precision and recall of a row of a study's table, without the spread."""
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
    own = ([row[0], row[1], row[4], *means(row)] for row in rows)
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


@named("few steps")
def few_steps() -> str:
    """Return the scores of each setting of few steps with both teachers.

    The settings of the first row are a point of every series. They are shown once.
    """
    studies = ("few_steps_flow", "few_steps")
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for study in studies:
        for row in cells(f"results/{study}/results.md"):
            if row[0] != "teacher":
                fid, clip, _, recall = means(row)
                found.setdefault((row[0], row[1]), {})[study] = [fid, clip, recall]
    first, *others = found
    order = [*dict.fromkeys(series for series, _ in found)]
    shown = [key for key in others if any(found[key][n] != found[first][n] for n in found[key])]
    rows = (
        [": ".join(key), *(cell for study in studies for cell in found[key].get(study, [""] * 3))]
        for key in [first, *sorted(shown, key=lambda key: order.index(key[0]))]
    )
    names = [name for name in SCORES if name != "precision"]
    kinds = [f"{name}, {kind}" for kind in ("flow", "discrete") for name in names]
    return table(["", *kinds], rows)


@named("law")
def power_law() -> str:
    """Return the law of FID over images of each series, and when it meets the teacher's best."""
    best = min(law.teachers().values())
    rows = []
    for label, runs in law.series().items():
        own, laws = law.fitted(runs), law.resampled(runs)
        images, fid = max(max(run) for run in runs)
        rows.append(
            [
                label,
                str(len(runs)),
                f"{images:,.0f}",
                f"{fid:.3f}",
                f"{own.floor:.3f} ({law.interval([each.floor for each in laws])})",
                f"{own.exponent:.2f} ({law.interval([each.exponent for each in laws])})",
                law.interval([each.images(best) for each in laws]),
            ]
        )
    header = ["", "seeds", "images", "FID", "floor", "exponent", f"images for {best:.3f}"]
    return table(header, rows)


def _rows(name: str) -> list[dict[str, str]]:
    with (RESULTS / f"{name}.csv").open(newline="") as file:
        return [*csv.DictReader(file)]


@named("teachers guidance")
def teachers_guidance() -> str:
    """Return the scores of the teacher at the scales near its best FID."""
    rows = [row for row in cells("results/law/results.md") if row[0] == "teacher"]
    return table(["teacher, 25 steps", *SCORES], ([row[1], *row[5:]] for row in rows))


@named("law branches")
def branches() -> str:
    """Return the scores of runs that continued the run of the law with another option."""
    first, *others = _rows("law_branches")
    shown = [first | {"branch": "(as it was)"}]
    shown += [row for row in others if row["images_seen"] != first["images_seen"]]
    names = [f"{name}_clip_2k" for name in ("fid", "clip_score", "precision", "recall")]
    rows = (
        [row["branch"], f"{int(row['images_seen']):,}", *(f"{float(row[n]):.3f}" for n in names)]
        for row in shown
    )
    return table(["continued with", "images", *SCORES], rows)


@named("ema widths")
def ema_widths() -> str:
    """Return FID of EMAs of several widths, and of the run's own, by run and images seen."""
    found: dict[tuple[str, int], dict[str, str]] = {}
    for row in _rows("ema_widths"):
        place = row["run"], int(row["images_seen"])
        found.setdefault(place, {})[row["width"]] = row["fid_clip_2k"]
    widths = sorted({width for each in found.values() for width in each}, key=float)
    branches = [
        (row["branch"], int(row["images_seen"]), row[law.FID]) for row in _rows("law_branches")
    ]
    first, *_ = law.series().values()
    for run, seen, fid in [("one step", n, fid) for n, fid in first[0]] + branches:
        if (run, seen) in found:
            found[run, seen]["own"] = fid
    rows = (
        [run, f"{seen:,}"]
        + [f"{float(each[width]):.3f}" if width in each else "" for width in ("own", *widths)]
        for (run, seen), each in found.items()
    )
    return table(["FID of", "images", "own EMA", *(f"width {width}" for width in widths)], rows)


@named("held out")
def held_out() -> str:
    """Return FID against references that were not used for choosing, or of another kind."""
    found: dict[str, dict[str, str]] = {}
    for row in _rows("held_out"):
        found.setdefault(row["reference"], {})[row["images"]] = f"{float(row['fid']):.3f}"
    real = found.pop("all test images")
    models = [*next(iter(found.values()))]
    rows = [[name, *(each.get(model, "") for model in models)] for name, each in found.items()]
    return table(["FID with", *models], rows) + "\n" + table([*real], [[*real.values()]])


@named("alignment")
def alignment() -> str:
    """Return how far sets of images are from each other."""
    rows = (
        [
            row["images"],
            row["reference"],
            *(f"{float(row[name]):.3f}" for name in ("fid", "feature_shift", "neighbour_ratio")),
            *(f"{float(row[f'power_{band}_db']):z.1f}" for band in ("low", "middle", "high")),
        ]
        for row in _rows("alignment")
    )
    bands = [f"{band} frequencies, dB" for band in ("low", "middle", "high")]
    return table(["images", "from", "FID", "shift", "neighbours", *bands], rows)
