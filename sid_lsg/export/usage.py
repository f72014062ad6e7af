"""Say on the model card how to use an exported folder."""

from sid_lsg.export import snippets
from sid_lsg.export.comfyui import WORKFLOW
from sid_lsg.export.facts import Facts, is_hub_id
from sid_lsg.export.folder import SCHEDULER_CLASS
from sid_lsg.messages.words import table
from sid_lsg.networks.lora import LORA_FILE, LORA_FOLDER

_GLOBAL_NOISE = (
    "The pipeline takes only the first step's noise from its `generator`. That of later steps "
    "follows `torch.manual_seed`, so sid-lsg's `generate`, whose images depend on their own seeds "
    "alone, makes other images."
)


def use(facts: Facts) -> str:
    """Return the section: code for the folder's format, notes, and a table of its files."""
    notes = {
        "diffusers": _GLOBAL_NOISE
        if facts.global_noise
        else "For the same seed, it makes the same image as sid-lsg's `generate`.",
        "network": f"The folder holds the {facts.network[0]} and its scheduler; the other parts "
        "are the teacher's.",
        "single-file": _one_file(facts),
        "comfyui": f"In ComfyUI: put {_places(facts)} and open `{WORKFLOW}`. {_one_file(facts)}",
        "lora": "The adapters of the " + facts.network[0] + ", for the teacher's pipeline.",
        "onnx": "`noise` is standard normal, `image` is in [-1, 1], and batches can have any size. "
        "To get the same image as sid-lsg for a seed, draw the noise with PyTorch.",
    }[facts.format]
    teacher = facts.teacher if is_hub_id(facts.teacher) else "path/to/the/teacher"
    call = facts.pipeline_options, facts.missing_parts
    how = facts.scheduler, facts.num_steps, facts.dtype, *call
    if facts.format == "diffusers":
        code = snippets.pipeline_snippet(facts.model, *how)
    elif facts.format in ("single-file", "comfyui") and facts.alone:
        code = snippets.network_snippet(facts.model, teacher, facts.network, *how, facts.file)
    elif facts.format in ("single-file", "comfyui"):
        code = snippets.single_file_snippet(
            facts.model, facts.file, teacher, facts.pipeline, *how[:-1]
        )
    elif facts.format == "lora":
        peft = facts.network[0] if facts.peft else None
        code = snippets.lora_snippet(facts.model, facts.file, teacher, *how, peft)
    elif facts.format == "network":
        code = snippets.network_snippet(facts.model, teacher, facts.network, *how)
    else:
        assert facts.tokens is not None  # `graph.save_graph` takes one tokenizer
        code = snippets.onnx_snippet(facts.model, facts.num_steps, facts.latent_shape, facts.tokens)
        return f"```python\n{code}\n```\n\n{notes}\n\n{_files(facts)}"
    if facts.scheduler == SCHEDULER_CLASS:
        notes += (
            " `trust_remote_code=True` lets diffusers run `scheduler/sid_lsg_scheduler.py`, because"
            " none of its schedulers samples this way. `num_inference_steps` may be changed."
        )
    elif facts.prediction_type == "flow_prediction":
        notes += (
            f" The scheduler's times are those of {facts.steps}: for another number, export with "
            "`--num_steps`."
        )
    else:
        notes += (
            " For more steps, export with `--num_steps`. If sid-lsg is installed, you can also set "
            "`pipeline.scheduler` to "
            "`sid_lsg.export.scheduler.SiDScheduler.from_config(pipeline.scheduler.config)`."
        )
    if facts.dtype == "float16":
        notes += (
            " If images are black, activations of the VAE overflow float16: load the folder in "
            "bfloat16 or float32."
        )
    return f"```python\n{code}\n```\n\n{notes}\n\n{_files(facts)}"


def _places(facts: Facts) -> str:
    if facts.beside is None:
        return f"`{facts.file}` in `models/checkpoints`"
    text_encoder, autoencoder = facts.beside
    return (
        f"`{facts.file}` in `models/diffusion_models`, the published `{text_encoder}` in "
        f"`models/text_encoders`, `{autoencoder}` in `models/vae`,"
    )


def _one_file(facts: Facts) -> str:
    parts = "" if facts.alone else ", the autoencoder and the text encoders"
    return (
        f"`{facts.file}` holds the {facts.network[0]}{parts} under the original names. Sample "
        "without guidance (CFG 1), without a negative prompt, from "
        f"timestep {facts.t_init}. Tools that always start at timestep 999 make other images."
        + (" The network predicts v." if facts.prediction_type == "v_prediction" else "")
    )


def _files(facts: Facts) -> str:
    """Return a table of the folder's files and what reads them."""
    network = facts.network[0]
    noise = {"`scheduler/`": "the generator's noise levels, for diffusers"}
    one = {f"`{facts.file}`": "the weights under their original names"}
    rows = {
        "diffusers": {"`model_index.json` and its folders": f"`{facts.pipeline}` of diffusers"},
        "network": {f"`{network}/`": f"`{facts.network[1]}` of diffusers", **noise},
        "single-file": one | noise,
        "comfyui": one | {f"`{WORKFLOW}`": "ComfyUI: sampler, noise levels and size"} | noise,
        "lora": {f"`{facts.file}`": "the adapters, for the teacher", **noise},
        "onnx": {"`generator.onnx`": "onnxruntime", "`tokenizer/`": "tokenizers"},
    }[facts.format]
    if facts.format == "lora" and facts.peft:
        rows["`adapter_config.json`"] = "peft"
    if facts.has_lora:
        where = f', subfolder="{LORA_FOLDER}"'
        call = f'load_lora_weights("{facts.model}"{where}, weight_name="{LORA_FILE}")'
        if facts.peft:
            call = snippets.peft_call(network, facts.model, where)
        rows[f"`{LORA_FOLDER}/`"] = f"the same generator as adapters of the teacher: `{call}`"
    return table(["file", "what it is, or what reads it"], [[*row] for row in rows.items()])
