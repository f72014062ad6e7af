"""Write a ComfyUI workflow that samples a generator saved as one file.

ComfyUI's `lcm` sampler is the generator's own sampling: it denoises, and adds fresh noise at the
next sigma. These are sigma_t / alpha_t for diffusion models and t for flow matching. `euler` keeps
the noise that the estimate of x_0 implies.
"""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler

from sid_lsg.export.original.models import ORIGINALS, Beside
from sid_lsg.messages.errors import UsageError
from sid_lsg.method.choices import Noise
from sid_lsg.method.flow import FlowSchedule
from sid_lsg.options.choices import Format
from sid_lsg.teachers.base import Teacher

WORKFLOW = "workflow.json"

_SAMPLERS: dict[Noise, str] = {"fresh": "lcm", "ddim": "euler"}
_PROMPT = "a lighthouse at dawn"


def sigmas(teacher: Teacher, t_init: int, num_steps: int) -> list[float]:
    """Return ComfyUI's noise levels of a K-step generator, from the first time to 0.

    Args:
        teacher: The teacher.
        t_init: The first timestep.
        num_steps: K.

    Raises:
        UsageError: If ComfyUI would read other timesteps from them.
    """
    schedule = teacher.schedule
    times = schedule.generator_times(t_init, num_steps)
    if isinstance(schedule, FlowSchedule):
        return [*map(float, times), 0.0]
    t = torch.tensor(times, dtype=torch.long)
    own = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    alphas = own.alphas_cumprod.sqrt()
    if len(schedule) != len(alphas) or not torch.allclose(schedule.alpha(t), alphas[t], rtol=1e-4):
        raise UsageError(
            "--format comfyui: ComfyUI samples with Stable Diffusion's noise schedule, and this "
            "teacher has another one. Use --format diffusers."
        )
    levels = schedule.sigma(t).double() / schedule.alpha(t).double()
    return [*(round(level, 6) for level in levels.tolist()), 0.0]


def workflow(
    name: str, teacher: Teacher, t_init: int, num_steps: int, noise: Noise
) -> dict[str, dict[str, Any]]:
    """Return the workflow in ComfyUI's API format.

    Args:
        name: The file in ComfyUI's `models/checkpoints`, or in `models/diffusion_models` if it
            holds the network alone.
        teacher: The teacher.
        t_init: The first timestep.
        num_steps: K.
        noise: The noise of the later steps.

    Raises:
        UsageError: If no sampler of ComfyUI does the same.
    """
    if num_steps > 1 and noise not in _SAMPLERS:
        raise UsageError(
            f"--format comfyui: this generator was trained with --model.noise {noise}, and no "
            "sampler of ComfyUI adds the same noise at each step. Use --format diffusers."
        )
    height, width = teacher.image_size
    channels = teacher.latent_shape[0]
    empty = "EmptySD3LatentImage" if channels == 16 else "EmptyLatentImage"
    levels = ", ".join(f"{level:g}" for level in sigmas(teacher, t_init, num_steps))
    loaders, clip, vae = {"1": _node("CheckpointLoaderSimple", ckpt_name=name)}, ["1", 1], ["1", 2]
    if beside := beside_of(teacher):
        empty, clip, vae = beside.latents, ["12", 0], ["13", 0]
        how = {"type": beside.kind, "device": "default"}
        loaders = {
            "1": _node("UNETLoader", unet_name=name, weight_dtype="default"),
            "12": _node("CLIPLoader", clip_name=beside.text_encoder, **how),
            "13": _node("VAELoader", vae_name=beside.autoencoder),
        }
    nodes = loaders | {
        "2": _node("CLIPTextEncode", text=_PROMPT, clip=clip),
        "3": _node(empty, width=width, height=height, batch_size=1),
        "4": _node("RandomNoise", noise_seed=0),
        "5": _node("BasicGuider", model=["1", 0], conditioning=["2", 0]),
        "6": _node("KSamplerSelect", sampler_name=_SAMPLERS.get(noise, "lcm")),
        "7": _node("ManualSigmas", sigmas=levels),
        "8": _node(
            "SamplerCustomAdvanced",
            noise=["4", 0],
            guider=["5", 0],
            sampler=["6", 0],
            sigmas=["7", 0],
            latent_image=["3", 0],
        ),
        "9": _node("VAEDecode", samples=["8", 0], vae=vae),
        "10": _node("SaveImage", images=["9", 0], filename_prefix="sid-lsg"),
    }
    if getattr(teacher, "embeds_guidance", False):  # generators get a scale of 1
        scale = teacher.pipeline_options["guidance_scale"]
        nodes["11"] = _node("FluxGuidance", conditioning=["2", 0], guidance=scale)
        nodes["5"]["inputs"]["conditioning"] = ["11", 0]
    if _predicts_v(teacher):  # ComfyUI guesses it from the weights, or takes epsilon
        how_predicted = {"sampling": "v_prediction", "zsnr": False}
        nodes["14"] = _node("ModelSamplingDiscrete", model=["1", 0], **how_predicted)
        nodes["5"]["inputs"]["model"] = ["14", 0]
    return nodes


def differences(teacher: Teacher, kind: Format, file: str) -> list[str]:
    """Return warnings of what tools do unlike the generator with its single file.

    Args:
        teacher: The teacher.
        kind: The export's format.
        file: The file's name.
    """
    found = []
    if kind == "single-file" and _predicts_v(teacher) and not _says_v(teacher):
        found.append(
            "--format single-file: this generator predicts v, and its file does not say so: A1111 "
            "and ComfyUI would take it to predict epsilon. For A1111, put a "
            f"{Path(file).stem}.yaml with `parameterization: v` beside the file; in ComfyUI, add "
            "the node ModelSamplingDiscrete with v_prediction, as --format comfyui does."
        )
    tokens, own = t5_tokens(teacher), teacher.max_sequence_length
    if tokens is not None and tokens != own:
        found.append(
            f"--format {kind}: for a short prompt, ComfyUI gives {tokens or 'no'} tokens of T5, "
            f"and this generator reads {own}, so its images there differ. "
            f"--model.text.max_sequence_length {tokens} in the training makes them equal."
        )
    return found


def t5_tokens(teacher: Teacher) -> int | None:
    """Return how many of T5's tokens ComfyUI gives for a short prompt; None for other families.

    It pads prompts to a number of the family's, without a mask, and gives none if the model has no
    T5.
    """
    model = ORIGINALS.get(teacher.original_layout or "")
    if model is None or model.t5_tokens is None:
        return None
    return 0 if {*model.text_encoders}.intersection(teacher.missing_parts) else model.t5_tokens


def _predicts_v(teacher: Teacher) -> bool:
    return teacher.schedule.prediction_type == "v_prediction"


def _says_v(teacher: Teacher) -> bool:
    """Return whether ComfyUI finds out from a single file that the network predicts v.

    SDXL's file has a key for it; Stable Diffusion 2's weights tell.
    """
    return teacher.original_layout != "stable-diffusion-1"


def beside_of(teacher: Teacher) -> Beside | None:
    """Return the files that ComfyUI loads beside a family's single file; None if there are none."""
    model = ORIGINALS.get(teacher.original_layout or "")
    return model.beside(teacher.network_options) if model and model.beside else None


def save_workflow(folder: Path, nodes: dict[str, dict[str, Any]]) -> None:
    """Write a workflow to a folder."""
    (folder / WORKFLOW).write_text(json.dumps(nodes, indent=2) + "\n", encoding="utf-8")


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}
