"""Make tiny pipelines with random weights for families that the recorded ones do not have."""

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)

_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_VOCABULARY = 256 + len(_SPECIAL)
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
_QWEN = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "pad_token_id": 256,
    "bos_token_id": 256,
    "eos_token_id": 258,
    "initializer_range": 0.1,
}
_DYNAMIC = {"shift": 3.0, "use_dynamic_shifting": True}


def _tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer of bytes with a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = models.BPE(vocab={text: number for number, text in enumerate(alphabet)}, merges=[])
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(_SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token=_SPECIAL[0],
        eos_token=_SPECIAL[2],
        chat_template=_TEMPLATE,
        model_max_length=2048,
    )


def _autoencoder(**options: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
        **options,
    )


def _flux2() -> Any:
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    return Flux2KleinPipeline(
        transformer=Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=48,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ),
        vae=vae,
        text_encoder=Qwen3ForCausalLM(Qwen3Config(**_QWEN, num_hidden_layers=28)),
        tokenizer=_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(**_DYNAMIC),
    )


def _qwen_image() -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}
    text = _QWEN | {"num_hidden_layers": 2, "rope_parameters": rope}
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 16,
        "fullatt_block_indexes": [0],
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return QwenImagePipeline(
        transformer=QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(4, 6, 6),
            _sample_size=8,
        ),
        vae=AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.5, 2.0, 0.7, 1.0],
        ),
        text_encoder=Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(**_DYNAMIC, shift_terminal=0.02),
    )


def _z_image() -> Any:
    return ZImagePipeline(
        transformer=ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=[4, 6, 6],
            axes_lens=[1024, 64, 64],
        ),
        vae=_autoencoder(),
        text_encoder=Qwen3Model(Qwen3Config(**_QWEN, num_hidden_layers=3)),
        tokenizer=_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


_MADE: dict[str, Callable[[], Any]] = {
    "flux2": _flux2,
    "qwen_image": _qwen_image,
    "z_image": _z_image,
}


@cache
def tiny_pipeline(name: str) -> Path:
    """Make a tiny pipeline once per process, in a temporary folder."""
    with torch.random.fork_rng(), torch.device("cpu"):
        torch.manual_seed(0)
        pipeline = _MADE[name]()
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                for weight in part.parameters():
                    if weight.dim() == 1 or not weight.any():  # biases and pad tokens
                        nn.init.normal_(weight, float(weight.float().mean().round()), 0.1)
    root = Path(tempfile.mkdtemp(prefix="tiny_pipelines_"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    folder = root / f"tiny_{name}"
    pipeline.save_pretrained(folder, safe_serialization=True)
    config = folder / "tokenizer" / "tokenizer_config.json"
    values = json.loads(config.read_text()) | {"tokenizer_class": "Qwen2Tokenizer"}
    config.write_text(json.dumps(values))
    index = folder / "model_index.json"
    parts = json.loads(index.read_text())
    parts["tokenizer"] = ["transformers", "Qwen2TokenizerFast"]
    index.write_text(json.dumps(parts))
    return folder
