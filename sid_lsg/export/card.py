"""Write the model card of an exported folder: use, training, scores and limits."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sid_lsg.export.facts import CARD, EXAMPLE, Facts, is_hub_id, public_name
from sid_lsg.export.usage import use
from sid_lsg.files.replacing import replacing
from sid_lsg.messages.words import steps, table

_PROTOCOLS = {
    "clean256": "features of Inception, resized by Pillow: LANCZOS to 256, then bicubic to 299",
    "clip": "image embeddings of a CLIP model, resized by Pillow to the model's size",
    "fast": "image embeddings of a CLIP model, resized by PyTorch",
}
_SCORES = re.compile(rf"(\w+?)_({'|'.join(_PROTOCOLS)})_(\d+k?)")
_COST = "evaluations_per_image"
_CITATION = """@inproceedings{zhou2025guided,
  title     = {Guided Score identity Distillation for Data-Free One-Step Text-to-Image Generation},
  author    = {Mingyuan Zhou and Zhendong Wang and Huangjie Zheng and Hai Huang},
  booktitle = {International Conference on Learning Representations},
  year      = {2025}
}"""


def write_card(folder: Path, facts: Facts) -> None:
    """Write README.md to an exported folder."""
    with replacing(folder / CARD) as temporary:
        temporary.write_text(card(facts), encoding="utf-8")


def card(facts: Facts) -> str:
    """Return the card: YAML metadata for the Hub, then Markdown for people."""
    few = "one-step" if facts.num_steps == 1 else "few-step"
    onnx = facts.format == "onnx"
    metadata: dict[str, Any] = {
        "license": facts.license or "other",
        "library_name": "onnx" if onnx else "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "onnx" if onnx else "diffusers", "sid-lsg", few],
    }
    if not facts.license:
        metadata["license_name"] = "see-the-teacher"
    if is_hub_id(facts.teacher):
        metadata["base_model"] = facts.teacher
    of = f" of {facts.teacher}" if facts.teacher else ""
    height, width = facts.size
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---",
        f"# SiD-LSG{of}, {facts.steps}",
        f"A text-to-image generator, distilled from a diffusion model with {facts.data}, "
        "by [Guided Score identity Distillation](https://arxiv.org/abs/2406.01561) with long and "
        f"short guidance. It makes an image of {width} x {height} pixels in {facts.steps}.",
        *([f"![Images of the generator]({EXAMPLE})"] if facts.has_example else []),
        f"## Use\n\n{use(facts)}",
        f"## Training\n\n{_training(facts)}",
    ]
    if scores := _scores(facts):
        parts.append(f"## Scores\n\n{scores}")
    parts += [f"## Limits and licence\n\n{_limits(facts)}"]
    parts += [f"## Citation\n\n```bibtex\n{_CITATION}\n```"]
    return "\n\n".join(parts) + "\n"


def _training(facts: Facts) -> str:
    rows = {"weights": f"EMA, {facts.dtype}"}
    rows |= {"network": f"{facts.prediction_type} prediction, {facts.steps}"}
    if facts.config:
        model, data = facts.config["model"], facts.config.get("data", {})
        kappas = ", ".join(f"{kappa:g}" for kappa in facts.kappas or ())
        rows = {
            "teacher": f"`{facts.teacher}`",
            "guidance": f"kappa_1..kappa_4 = {kappas}",
            "first timestep": f"{model['t_init']}",
            **rows,
            "EMA half-life": f"{model['ema']['halflife_images']:,.0f} images",
            "optimizers": "; ".join(
                f"{name.replace('_', ' ')}: {_optimizer(model.get(f'optimizer_{key}'))}"
                for name, key in (("fake_score", "fake"), ("generator", "generator"))
            ),
            "precision": str(facts.config.get("trainer", {}).get("precision") or "32-true"),
        }
        if model["num_steps"] != facts.num_steps:
            rows["trained with"] = f"num_steps {model['num_steps']}"
        if facts.iterations is not None and (batch := data.get("batch_size")):
            seen = f"{facts.iterations * batch:,} ({facts.iterations:,} iterations of {batch})"
            rows["images seen"] = seen
    if facts.versions:
        rows["versions"] = ", ".join(f"{name} {value}" for name, value in facts.versions.items())
    return "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())])


def _optimizer(options: Mapping[str, Any] | None) -> str:
    if not options:
        return "Adam"
    rate = options.get("init_args", {}).get("lr")
    name = str(options.get("class_path", "")).rsplit(".", 1)[-1]
    return name + (f", learning rate {rate:g}" if isinstance(rate, int | float) else "")


def _scores(facts: Facts) -> str:
    """Format the scores: rows for the teacher and the generator, per number of steps."""
    rows: dict[str, dict[str, Any]] = {}
    for key, value in (facts.summary or {}).items():
        if "initial_" in key or not (found := _SCORES.match(key)):
            continue
        rows.setdefault(_row_name(key, found.end(), facts.summary or {}), {})[
            found.group().removeprefix("teacher_")
        ] = value
    for report in facts.reports:
        name = f"this, {steps(report['num_steps'])}, {report['dtype']}, by `evaluate`"
        rows[name] = dict(report["scores"])
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    if not columns:
        return ""
    body = [
        [name, *(f"{row[k]:.4g}" if k in row else "-" for k in columns)]
        for name, row in rows.items()
    ]
    named = {found.group(2) for key in columns if (found := _SCORES.match(key))}
    legend = "; ".join(f"`{name}`: {what}" for name, what in _PROTOCOLS.items() if name in named)
    clip = ((facts.config or {}).get("metrics") or {}).get("clip")
    model = f" The CLIP model is `{public_name(clip)}`." if clip else ""
    return "\n".join(
        [
            table(["", *(f"`{key}`" for key in columns)], body),
            "",
            "The name of a score states its protocol and the number of images; compare it only "
            f"with scores of the same name. {legend}.{model}",
        ]
    )


def _row_name(key: str, end: int, summary: Mapping[str, Any]) -> str:
    """Return the row for a score of summary.json."""
    if key.startswith("teacher_"):
        count = steps(summary["teacher_steps"])
        return f"teacher, {count}, guidance {summary['teacher_guidance']:g}"
    return f"this, {steps(int(key[end + 1 :].split('_')[0] or summary[_COST]))}"


def _limits(facts: Facts) -> str:
    text = (
        "It is meant for research and for generating images from text. It has its teacher's "
        "limits and biases, and can reproduce contents of the teacher's training data. "
        "It has no guidance scale, no negative prompts and no safety checker, so filter its images "
        "before you publish them.\n\n"
    )
    if facts.license:
        return f"{text}Licence: `{facts.license}`, which is the teacher's."
    return f"{text}Licence: the teacher's, which its files do not state. Look it up before sharing."
