"""`export`: export a trained generator for diffusers, as a network, or as an ONNX graph."""

import glob
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sid_lsg.files.replacing import (
    check_outside,
    check_writable,
    remove,
    replacing,
    writing,
)
from sid_lsg.files.sources import SCHEDULER_CONFIG, locate
from sid_lsg.messages.checks import refuse
from sid_lsg.messages.errors import UsageError
from sid_lsg.options.choices import Format, LoRALayout, Precision

if TYPE_CHECKING:
    from sid_lsg.checkpoints.opening import OpenCheckpoint
    from sid_lsg.generation.trained import Trained

_OWN = ("model_index.json", SCHEDULER_CONFIG, "generator.onnx")  # each export has one of these
_TAG = "sid-lsg"  # a tag of the model card


def export(
    ckpt_path: str,
    output: str,
    format: Format | Literal["unet"] = "diffusers",
    layout: LoRALayout = "diffusers",
    dtype: Precision = "float32",
    num_steps: int | None = None,
    resolution: int | None = None,
    teacher: str | None = None,
    ema_width: float | None = None,
    license: str | None = None,
    push_to_hub: str | None = None,
    private: bool = False,
    overwrite: bool = False,
) -> None:
    """Export a trained generator as a folder that other software can sample.

    The folder contains the generator's EMA, the other components of its teacher, and a model card
    that says how to use it and how it was trained.

    Args:
        ckpt_path: A checkpoint, or a run directory for its newest checkpoint.
        output: The folder to write.
        format: `diffusers`: a pipeline for stock diffusers; `network` (or `unet`, its earlier
            name): the denoising network and its scheduler, for a pipeline of the teacher; `onnx`:
            one graph from noise and tokens to images, with the tokenizer; `single-file`: all
            networks in one file with the original names, for A1111, Forge and InvokeAI; `comfyui`:
            that file and a workflow; `lora`: the adapters of a generator that was trained by LoRA.
        layout: The names in a LoRA file: `diffusers` for `load_lora_weights`, `kohya` for A1111 and
            Forge, `comfyui` for ComfyUI.
        dtype: Precision of the weights of all networks. In float16 the VAE of some teachers
            overflows and gives black images, for example Stable Diffusion XL's; bfloat16 has
            float32's range.
        num_steps: Steps of the generator; by default the training's. One step, and flow
            matching with its default times and noise, need only classes of diffusers. Otherwise
            diffusers runs a scheduler that is saved in the folder, with trust_remote_code=True.
        resolution: Side of the images in pixels; by default the training's.
        teacher: Folder or Hub id of the teacher; by default the one of the training.
        ema_width: Export an EMA of this relative width, made from the run's snapshots (fit's
            --model.ema.snapshot_images), in place of the run's EMA. 0.1 averages over about the
            last third of the training, 0.05 over half of that.
        license: Licence in the model card, by the Hub's name; by default the teacher's, if its own
            card states it.
        push_to_hub: Also upload the folder to this Hub id (owner/name).
        private: Make the repository on the Hub private.
        overwrite: Replace an earlier export in the output folder.

    Raises:
        UsageError: If the options do not go together, or the generator cannot be exported.
    """
    import torch
    from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

    from sid_lsg.checkpoints.opening import require_checkpoint
    from sid_lsg.commands.export_formats import check_format, save
    from sid_lsg.export.card import write_card
    from sid_lsg.export.facts import EXAMPLE, facts_of, teacher_license
    from sid_lsg.export.hub import check_id, push
    from sid_lsg.export.lora_file import fit_teacher, lora_file_name
    from sid_lsg.generation.trained import load_trained

    if num_steps is not None and num_steps < 1:
        refuse("num_steps", num_steps, "at least 1")
    if push_to_hub:
        check_id(push_to_hub)
    kind: Format = "network" if format == "unet" else format
    if layout != "diffusers" and kind != "lora":
        raise UsageError(f"--layout {layout}: only --format lora has layouts. Leave it out.")
    if format == "onnx":
        if dtype != "float32":
            refuse("dtype", dtype, "float32 with --format onnx")
        from sid_lsg.export.graph import check_installed

        check_installed()
    root = Path(output).expanduser().absolute()
    _check_output(root, overwrite)
    check_outside(root, {"ckpt_path": ckpt_path})
    check_writable(root.parent, "output")

    checkpoint = require_checkpoint(ckpt_path)
    in_files = kind != "onnx"
    found = load_trained(checkpoint, teacher, resolution, ema_width=ema_width, in_files=in_files)
    steps = num_steps or found.num_steps
    if steps > found.t_init:
        refuse("num_steps", steps, f"at most {found.t_init}, the generator's timestep")
    source = teacher or found.record["config"]["model"]["teacher"]
    check_outside(root, {"teacher": source})
    config, network = found.record["config"], found.teacher.network
    facts = facts_of(
        found.teacher,
        found.t_init,
        steps,
        found.noise,
        config=config,
        versions=found.record.get("versions") or {},
        license=license or teacher_license(source, ask_hub=True),
        format=kind,
        file=lora_file_name(network, layout, root.name)
        if kind == "lora"
        else f"{root.name}.safetensors",
        dtype=dtype,
        has_lora=kind in ("diffusers", "network") and fit_teacher(found.adapted, config),
        has_example=(grid := _grid(checkpoint)) is not None,
        **_history(checkpoint, found),
        **({"model": push_to_hub} if push_to_hub else {}),
    )
    check_format(found, facts)
    with writing(root, "output"):
        with replacing(root) as temporary:
            save(found, temporary, facts, getattr(torch, dtype), layout)
            if grid:
                shutil.copyfile(grid, temporary / EXAMPLE)
            write_card(temporary, facts)
        for leftover in root.parent.glob(f".{glob.escape(root.name)}.*.tmp"):
            remove(leftover)  # of a killed command
    rank_zero_info(f"The generator is in {root}; its README.md says how to use it.")
    if not facts.license:
        rank_zero_warn("The teacher's licence is not known. Give it with --license.")
    if push_to_hub:
        rank_zero_info(f"Uploaded to {push(root, push_to_hub, private)}.")


def _check_output(root: Path, overwrite: bool) -> None:
    """Reject a non-empty output folder, unless it is an export and `overwrite` is set."""
    if not root.exists():
        return
    names = {path.name for path in root.iterdir()} if root.is_dir() else {root.name}
    if not names:
        return
    what = f"--output: {str(root)!r} is not empty: it holds {sorted(names)[0]!r}."
    if not _is_export(root):
        raise UsageError(f"{what} Choose another folder, since only an export can be replaced.")
    if not overwrite:
        raise UsageError(f"{what} Choose another folder, or give --overwrite to replace it.")


def _is_export(root: Path) -> bool:
    """Return True if a folder is an export: by its card, or by its scheduler's t_init."""
    from sid_lsg.export.exported import read_exported
    from sid_lsg.export.facts import CARD

    try:
        card = root / CARD
        if card.is_file() and _TAG in card.read_text(encoding="utf-8"):
            return any((root / name).exists() for name in _OWN)
        return read_exported(locate(str(root))) is not None
    except (OSError, ValueError):
        return False


def _grid(checkpoint: "OpenCheckpoint") -> Path | None:
    """Return the run's image grid of exactly this checkpoint, if there is one."""
    run = checkpoint.path.absolute().parent.parent
    grid = run / "grids" / f"step-{checkpoint.iterations:07d}.png"
    return grid if grid.is_file() else None


def _history(checkpoint: "OpenCheckpoint", found: "Trained") -> dict[str, Any]:
    """Read the length of the training, and the scores of this generator, in the run directory."""
    from sid_lsg.files.weights import weights_hash

    iterations = checkpoint.iterations
    run = checkpoint.path.absolute().parent.parent
    summary = _read(run / "summary.json")
    if summary.get("iterations") != iterations:
        summary = {}
    reports = [_read(path) for path in sorted(run.glob("*/report.json"))]
    if reports:
        own = weights_hash(found.weights or found.teacher.network.state_dict())
        reports = [report for report in reports if report.get("weights_sha256") == own]
    return {"iterations": iterations, "summary": summary, "reports": reports}


def _read(path: Path) -> dict[str, Any]:
    """Read a JSON object; return {} if there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
