"""Generate the Python code in a model card that samples the exported folder."""

from collections.abc import Mapping, Sequence
from typing import Any

from sid_lsg.export.folder import SCHEDULER_CLASS, SCHEDULER_MODULE

PLACE = "path/to/this/folder"  # for folders that are not on the Hub
_PROMPT = "a lighthouse at dawn"


def pipeline_snippet(
    model: str,
    scheduler: str,
    num_steps: int,
    dtype: str,
    options: Mapping[str, Any],
    missing: Sequence[str] = (),
) -> str:
    """Return code that loads and samples a complete pipeline; `missing` parts are None."""
    trust = ", trust_remote_code=True" if scheduler == SCHEDULER_CLASS else ""
    load = f'DiffusionPipeline.from_pretrained("{model}"{_typed(dtype)}{_none(missing)}{trust})'
    lines = ["import torch", "from diffusers import DiffusionPipeline", "", f"pipeline = {load}"]
    return "\n".join([*lines, *_sampled(num_steps, dtype, options)])


def network_snippet(
    model: str,
    teacher: str,
    network: tuple[str, str],
    scheduler: str,
    num_steps: int,
    dtype: str,
    options: Mapping[str, Any],
    missing: Sequence[str] = (),
    file: str | None = None,
) -> str:
    """Return code that puts a network and its scheduler into the teacher's pipeline.

    The network is in its own folder, or in a single file.
    """
    name, kind = network
    imports, found = _scheduler(model, scheduler, "DiffusionPipeline", kind)
    typed = _typed(dtype)
    load = f'{name} = {kind}.from_pretrained("{model}", subfolder="{name}"{typed})'
    if file:
        where = f'"{_file(model, file)}", config="{teacher}", subfolder="{name}"{typed}'
        load = f"{name} = {kind}.from_single_file(\n    {where}\n)"
    body = [
        *found,
        load,
        f'scheduler = {scheduler}.from_pretrained("{model}", subfolder="scheduler")',
        "pipeline = DiffusionPipeline.from_pretrained(",
        f'    "{teacher}", {name}={name}, scheduler=scheduler{typed}{_none(missing)}',
        ")",
    ]
    return "\n".join([*imports, "", *body, *_sampled(num_steps, dtype, options)])


def single_file_snippet(
    model: str,
    file: str,
    teacher: str,
    pipeline: str,
    scheduler: str,
    num_steps: int,
    dtype: str,
    options: Mapping[str, Any],
) -> str:
    """Return code that loads a single file, with the teacher's configurations."""
    imports, found = _scheduler(model, scheduler, pipeline)
    body = [
        *found,
        f"pipeline = {pipeline}.from_single_file(",
        f'    "{_file(model, file)}", config="{teacher}"{_typed(dtype)}',
        ")",
        f'pipeline.scheduler = {scheduler}.from_pretrained("{model}", subfolder="scheduler")',
    ]
    return "\n".join([*imports, "", *body, *_sampled(num_steps, dtype, options)])


def lora_snippet(
    model: str,
    file: str,
    teacher: str,
    scheduler: str,
    num_steps: int,
    dtype: str,
    options: Mapping[str, Any],
    missing: Sequence[str] = (),
    peft: str | None = None,
) -> str:
    """Return code that adds the adapters to the teacher's pipeline; peft to a network of it."""
    imports, found = _scheduler(model, scheduler, "DiffusionPipeline")
    load = f'pipeline.load_lora_weights("{model}", weight_name="{file}")'
    if peft:
        imports.append("from peft import PeftModel")
        load = f"pipeline.{peft} = {peft_call(peft, model)}"
    body = [
        *found,
        "pipeline = DiffusionPipeline.from_pretrained(",
        f'    "{teacher}"{_typed(dtype)}{_none(missing)}',
        ")",
        load,
        f'pipeline.scheduler = {scheduler}.from_pretrained("{model}", subfolder="scheduler")',
    ]
    return "\n".join([*imports, "", *body, *_sampled(num_steps, dtype, options)])


def peft_call(network: str, model: str, options: str = "") -> str:
    """Return the call by which peft adds a folder's adapters to a network of a pipeline."""
    return f'PeftModel.from_pretrained(pipeline.{network}, "{model}"{options})'


def onnx_snippet(
    model: str, num_steps: int, latent_shape: tuple[int, ...], tokens: tuple[int, int, str]
) -> str:
    """Return code that samples the ONNX graph without PyTorch."""
    length, pad_id, pad_token = tokens
    steps = (num_steps,) if num_steps > 1 else ()
    shape = ", ".join(map(str, (*steps, *latent_shape)))
    return f"""import numpy as np
import onnxruntime
from tokenizers import Tokenizer

folder = "{PLACE}"{"" if model == PLACE else f"  # hf download {model} --local-dir {PLACE}"}
tokenizer = Tokenizer.from_file(f"{{folder}}/tokenizer/tokenizer.json")
tokenizer.enable_truncation({length})
tokenizer.enable_padding(length={length}, pad_id={pad_id}, pad_token="{pad_token}")
session = onnxruntime.InferenceSession(f"{{folder}}/generator.onnx")

prompts = ["{_PROMPT}"]
input_ids = np.array([found.ids for found in tokenizer.encode_batch(prompts)], dtype=np.int64)
noise = np.random.default_rng(0).standard_normal((len(prompts), {shape}), dtype=np.float32)
(images,) = session.run(None, {{"noise": noise, "input_ids": input_ids}})
pixels = np.rint((images + 1) * 127.5).clip(0, 255).astype(np.uint8)  # [B, 3, H, W]"""


def _scheduler(model: str, scheduler: str, *classes: str) -> tuple[list[str], list[str]]:
    """Return the imports of classes of diffusers and a scheduler, and code that loads its class."""
    if scheduler != SCHEDULER_CLASS:
        names = sorted([*classes, scheduler])
        return ["import torch", f"from diffusers import {', '.join(names)}"], []
    imports = [
        "import torch",
        f"from diffusers import {', '.join(sorted(classes))}",
        "from diffusers.utils.dynamic_modules_utils import get_class_from_dynamic_module",
    ]
    found = [
        f"{scheduler} = get_class_from_dynamic_module(",
        f'    "{model}",',
        f'    "{SCHEDULER_MODULE}.py",',
        '    subfolder="scheduler",',
        f'    class_name="{scheduler}",',
        "    trust_remote_code=True,",
        ")",
    ]
    return imports, found


def _file(model: str, file: str) -> str:
    """Return a file's path, or its address on the Hub, as `from_single_file` takes it."""
    return (
        f"{model}/{file}" if model == PLACE else f"https://huggingface.co/{model}/blob/main/{file}"
    )


def _none(missing: Sequence[str]) -> str:
    """Return arguments for the parts that a model lacks; diffusers loads no folder without them."""
    return "".join(f", {name}=None" for name in missing)


def _typed(dtype: str) -> str:
    return "" if dtype == "float32" else f", torch_dtype=torch.{dtype}"


def _sampled(num_steps: int, dtype: str, options: Mapping[str, Any]) -> list[str]:
    move = [] if dtype == "float32" else ['pipeline.to("cuda")']
    return [
        *move,
        "image = pipeline(",
        f'    prompt="{_PROMPT}",',  # of FLUX.2's pipeline, it is not the first argument
        f"    num_inference_steps={num_steps},",
        *(f"    {name}={value!r}," for name, value in options.items()),
        "    generator=torch.Generator().manual_seed(0),",
        ").images[0]",
    ]
