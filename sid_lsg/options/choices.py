"""Choices and defaults that several commands share."""

from typing import Literal

SamplerName = Literal["auto", "generator", "ddim", "pipeline"]
Precision = Literal["float32", "bfloat16", "float16"]
ProtocolName = Literal["clean256", "clip", "fast"]
Format = Literal["diffusers", "network", "onnx", "single-file", "comfyui", "lora"]
BenchmarkName = Literal["geneval", "dpg", "hpsv2", "t2i-compbench"]
PromptLanguage = Literal["any", "latin", "english"]
LoRALayout = Literal["diffusers", "kohya", "comfyui"]
MeasuredPrecision = Literal["config", "fp32", "tf32", "bf16", "bf16-compile"]
MemoryUse = Literal[
    "config",
    "fast",
    "balanced",
    "lean",
    "fast-checkpointing",
    "balanced-checkpointing",
    "lean-checkpointing",
]

PUBLISHED_SCORES = (
    "cmmd", "fd_dinov2", "fid_clean", "fid_patch", "fid_teacher", "diversity", "pickscore",
    "hpsv2", "aesthetic", "image_reward",
)  # fmt: skip
"""Their names, in the order of tables; each has a protocol of its own."""

# Published scores, as `--scores '[cmmd, pickscore]'` or with the sources of their networks.
Scores = list[str] | dict[str, str | None]

# The model and prompt prefix of the paper's CLIP scores.
PAPER_CLIP = "laion/CLIP-ViT-g-14-laion2B-s12B-b42K"
PAPER_PREFIX = "A photo depicts "
