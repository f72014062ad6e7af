"""Save a trained generator in one of the formats of `export`."""

from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from safetensors.torch import load_file, save_file

from sid_lsg.export.comfyui import differences, save_workflow, workflow
from sid_lsg.export.facts import Facts
from sid_lsg.export.folder import make_scheduler, save_network, save_pipeline, save_scheduler
from sid_lsg.export.lora_file import lora_weights, own_base
from sid_lsg.export.modelspec import modelspec
from sid_lsg.export.original.models import ORIGINALS, original
from sid_lsg.export.single_file import save_single_file
from sid_lsg.generation.trained import Trained
from sid_lsg.messages.errors import UsageError
from sid_lsg.networks.lora import LORA_FOLDER, save_lora
from sid_lsg.options.choices import LoRALayout


def save(
    found: Trained,
    folder: Path,
    facts: Facts,
    dtype: torch.dtype,
    lora_layout: LoRALayout = "diffusers",
) -> None:
    """Write the weights and configurations of an export.

    Args:
        found: The generator.
        folder: The folder to write.
        facts: What the model card says; its `format` is the format, and `file` the file's name.
        dtype: Dtype of the weights.
        lora_layout: The names in a LoRA file.

    Raises:
        UsageError: If the family has no such format, or a weight overflows the dtype.
        OSError: If writing fails.
    """
    match facts.format:
        case "onnx":
            _save_graph(found, folder, facts)
        case "single-file" | "comfyui":
            _save_one_file(found, folder, facts, dtype)
        case "lora":
            _save_lora(found, folder, facts, lora_layout, dtype)
        case kind:
            write = save_pipeline if kind == "diffusers" else save_network
            how = folder, found.t_init, facts.num_steps, dtype, found.noise
            write(found.teacher, found.teacher.network, *how, found.weights)
            if facts.has_lora:
                assert found.adapted is not None  # `fit_teacher`
                save_lora(found.adapted, found.teacher.network_name, folder / LORA_FOLDER)


def check_format(found: Trained, facts: Facts) -> None:
    """Reject a format that the generator's family or training does not have, before writing.

    Warns of what the tools that read the format do unlike the generator.

    Raises:
        UsageError: If it has not.
    """
    teacher, steps = found.teacher, facts.num_steps
    match facts.format:
        case "onnx" if found.noise != "fresh":
            raise UsageError(
                f"--format onnx: this generator was trained with --model.noise {found.noise}, and "
                "a graph takes fresh noise for each step. Use --format diffusers."
            )
        case "lora" if found.adapted is None:
            raise UsageError(
                "--format lora: the generator was trained without LoRA adapters. Use another "
                "format, or train with --model.lora.generator.rank."
            )
        case "lora" if base := own_base(facts.config):
            raise UsageError(
                f"--format lora: the adapters were trained on --model.init.generator {base}, and "
                "tools would add them to the teacher, which gives another generator. Use --format "
                "diffusers, which merges them."
            )
        case "single-file" | "comfyui":
            original(teacher.original_layout)
            if facts.format == "comfyui":
                workflow(facts.file, teacher, found.t_init, steps, found.noise)
            for difference in differences(teacher, facts.format, facts.file):
                rank_zero_warn(difference)


def _save_one_file(found: Trained, folder: Path, facts: Facts, dtype: torch.dtype) -> None:
    teacher = found.teacher
    model = original(teacher.original_layout)
    scheduler = make_scheduler(teacher, found.t_init, facts.num_steps, found.noise)
    components = teacher.pipeline(teacher.network, scheduler).components
    folder.mkdir()
    spec = modelspec(facts, model.architecture)
    predicted = teacher.schedule.prediction_type
    how = dtype, spec, found.weights, teacher.whole_part, predicted
    save_single_file(folder / facts.file, model, teacher.network, components, *how)
    save_scheduler(scheduler, folder)
    if facts.format == "comfyui":
        save_workflow(
            folder, workflow(facts.file, teacher, found.t_init, facts.num_steps, found.noise)
        )


def _save_lora(
    found: Trained, folder: Path, facts: Facts, layout: LoRALayout, dtype: torch.dtype
) -> None:
    assert found.adapted is not None  # `check_format`
    teacher = found.teacher
    model = ORIGINALS.get(teacher.original_layout or "")
    weights = lora_weights(found.adapted, model, layout, teacher.network_name)
    folder.mkdir()
    if facts.peft:  # peft reads its own names, and a configuration
        save_lora(found.adapted, teacher.network_name, folder)
        weights = load_file(folder / facts.file)
    architecture = model.architecture if model else type(teacher.network).__name__
    typed = {key: value.to(dtype).contiguous() for key, value in weights.items()}
    save_file(
        typed, folder / facts.file, {"format": "pt", **modelspec(facts, f"{architecture}/lora")}
    )
    save_scheduler(make_scheduler(teacher, found.t_init, facts.num_steps, found.noise), folder)


def _save_graph(found: Trained, folder: Path, facts: Facts) -> None:
    from sid_lsg.export.graph import check_graph, save_graph

    how = found.t_init, facts.num_steps
    save_graph(found.teacher, folder, *how)
    difference = check_graph(found.teacher, folder, *how)
    rank_zero_info(
        f"Two images of the graph in onnxruntime differ from PyTorch's by at most {difference:.2g} "
        "(their range is [-1, 1])."
    )
