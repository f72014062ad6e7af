"""Train the embedded teacher `fashion` from Fashion-MNIST, stage by stage, on a CPU.

    python -m sid_lsg.demo.recipe clip --output fashion         # tokenizer, text and image towers
    python -m sid_lsg.demo.recipe vae --output fashion
    python -m sid_lsg.demo.recipe sharpen --output fashion      # needs vae
    python -m sid_lsg.demo.recipe unet --output fashion         # needs clip and vae
    python -m sid_lsg.demo.recipe statistics --output fashion   # needs clip

The folder contains a Stable Diffusion pipeline in diffusers' layout, the complete `CLIPModel` (for
the CLIP score and image features), the captions, and the reference statistics of the 10,000 test
images. Networks are trained in float32 and stored in float16.
"""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from sid_lsg.demo.dataset import CAPTIONS, DATA_DIR, SIZE, draw, load_photographs
from sid_lsg.demo.tokenizer import train_tokenizer
from sid_lsg.demo.training import adamw, batches, encode, optimize, tokenize
from sid_lsg.images.pixels import to_uint8
from sid_lsg.messages.errors import UsageError
from sid_lsg.metrics.features import CLIPFeatures
from sid_lsg.metrics.protocol import clip_protocol
from sid_lsg.metrics.statistics import Collector


def clip(output: Path, data_dir: str = DATA_DIR, steps: int = 3000, batch_size: int = 128) -> None:
    """Train the tokenizer and a small CLIP, contrastively.

    Args:
        output: The teacher's folder.
        data_dir: Folder with Fashion-MNIST's IDX files.
        steps: Optimizer steps.
        batch_size: Images per step.
    """
    tokenizer = train_tokenizer(list(CAPTIONS))
    ids = tokenize(tokenizer, CAPTIONS)
    tower = {
        "hidden_size": 96, "intermediate_size": 256,
        "num_hidden_layers": 3, "num_attention_heads": 4,
    }  # fmt: skip
    text = tower | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = tower | {"image_size": SIZE, "patch_size": 4}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))
    data = batches(load_photographs(data_dir, "train"), batch_size, seed=1)

    def loss() -> Tensor:
        images, captions = next(data)
        unique, which = captions.unique(return_inverse=True)
        logits = model(input_ids=ids[unique], pixel_values=images).logits_per_image
        # All images with a caption are correct answers to it and share its probability.
        positive = F.one_hot(which, len(unique)).T.float()
        to_image = -(positive * logits.T.log_softmax(-1)).sum(-1) / positive.sum(-1)
        return (F.cross_entropy(logits, which) + to_image.mean()) / 2

    optimize(model, loss, steps, adamw(model, lr=1e-3), decay=0.998).half().save_pretrained(
        output / "clip"
    )
    tokenizer.save_pretrained(output / "clip")
    tokenizer.save_pretrained(output / "tokenizer")
    preprocessor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": SIZE}
    (output / "clip" / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    encoder = CLIPTextModel.from_pretrained(output / "clip", dtype=torch.float16)
    encoder.save_pretrained(output / "text_encoder")
    # Shuffled, so that the first few captions are varied.
    order = torch.randperm(len(CAPTIONS), generator=torch.Generator().manual_seed(0))
    (output / "prompts.txt").write_text("".join(f"{CAPTIONS[i]}\n" for i in order))


def vae(output: Path, data_dir: str = DATA_DIR, steps: int = 2800, batch_size: int = 32) -> None:
    """Train the autoencoder: 32x32 RGB to 4x8x8 latents.

    Args:
        output: The teacher's folder.
        data_dir: Folder with Fashion-MNIST's IDX files.
        steps: Optimizer steps.
        batch_size: Images per step.
    """
    torch.manual_seed(0)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        norm_num_groups=16,
        sample_size=SIZE,
    ).to(memory_format=torch.channels_last)
    photographs = load_photographs(data_dir, "train")
    data = batches(photographs, batch_size, seed=2)

    def loss() -> Tensor:
        images = next(data)[0].contiguous(memory_format=torch.channels_last)
        posterior = model.encode(images).latent_dist
        error = model.decode(posterior.sample()).sample - images
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        return error.square().mean() + 0.2 * error.abs().mean() + 1e-5 * divergence

    model = optimize(model, loss, steps, adamw(model, lr=1.5e-3), decay=0.998)
    images, _ = next(batches(photographs, 1024, seed=3))
    with torch.no_grad():
        latents = model.encode(images).latent_dist.sample()
        error = model.decode(latents).sample.clamp(-1, 1) - images
    model.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    psnr = (10 * torch.log10(4 / error.square().mean((1, 2, 3)))).mean()
    print(f"PSNR {psnr:.2f} dB, scaling factor {model.config.scaling_factor}")
    model.half().save_pretrained(output / "vae")


def sharpen(
    output: Path, data_dir: str = DATA_DIR, steps: int = 2500, batch_size: int = 32
) -> None:
    """Train the autoencoder's decoder against a patch discriminator, to sharpen texture.

    The encoder is frozen, so latents do not change. As in VQGAN (Esser et al., 2021), the
    adversarial term is scaled to half the reconstruction's gradient at the last layer.

    Args:
        output: The teacher's folder, with its autoencoder.
        data_dir: Folder with Fashion-MNIST's IDX files.
        steps: Optimizer steps.
        batch_size: Images per step.
    """
    model = AutoencoderKL.from_pretrained(output / "vae", torch_dtype=torch.float32)
    model.requires_grad_(False).to(memory_format=torch.channels_last)
    for part in (model.post_quant_conv, model.decoder):
        part.requires_grad_(True)
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels, width, stride in ((3, 48, 2), (48, 96, 2), (96, 96, 1)):
        convolution = nn.Conv2d(channels, width, 4 if stride == 2 else 3, stride, padding=1)
        layers += [nn.utils.parametrizations.spectral_norm(convolution), nn.LeakyReLU(0.2)]
    discriminator = nn.Sequential(*layers, nn.Conv2d(96, 1, 1))
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=4e-4, betas=(0.5, 0.9))
    last = model.decoder.conv_out.weight
    data = batches(load_photographs(data_dir, "train"), batch_size, seed=8)

    def loss() -> Tensor:
        images = next(data)[0].contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            latents = model.encode(images).latent_dist.sample()
        decoded = model.decode(latents).sample
        fake = discriminator(decoded.detach())
        hinge = F.relu(1 - discriminator(images)).mean() + F.relu(1 + fake).mean()
        optimizer.zero_grad()
        hinge.backward()
        optimizer.step()

        error = decoded - images
        reconstruction = error.square().mean() + 0.2 * error.abs().mean()
        adversarial = -discriminator(decoded).mean()
        (wanted,) = torch.autograd.grad(reconstruction, last, retain_graph=True)
        (pushed,) = torch.autograd.grad(adversarial, last, retain_graph=True)
        scale = 0.5 * (wanted.norm() / (pushed.norm() + 1e-6)).clamp(max=1.0)
        return reconstruction + scale * adversarial

    optimize(model, loss, steps, adamw(model, lr=3e-4), decay=0.998).half().save_pretrained(
        output / "vae"
    )


def unet(output: Path, data_dir: str = DATA_DIR, steps: int = 10000, batch_size: int = 64) -> None:
    """Train the denoiser with epsilon prediction and 10% prompt dropout; save the pipeline.

    Args:
        output: The teacher's folder, with its CLIP and autoencoder.
        data_dir: Folder with Fashion-MNIST's IDX files.
        steps: Optimizer steps.
        batch_size: Images per step.
    """
    autoencoder = AutoencoderKL.from_pretrained(output / "vae", torch_dtype=torch.float32)
    text_encoder = CLIPTextModel.from_pretrained(output / "text_encoder", dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(output / "tokenizer")
    with torch.no_grad():
        embeddings = text_encoder(tokenize(tokenizer, (*CAPTIONS, "")))[0]
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=SIZE // 4,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        cross_attention_dim=embeddings.shape[-1],
        attention_head_dim=4,
        norm_num_groups=16,
    ).to(memory_format=torch.channels_last)
    moments, captions = encode(autoencoder, load_photographs(data_dir, "train"), repeats=3)
    generator = torch.Generator().manual_seed(4)

    def loss() -> Tensor:
        index = torch.randint(len(captions), (batch_size,), generator=generator)
        mean, deviation = moments[index].float().chunk(2, dim=1)
        x_0 = mean + deviation * torch.randn(mean.shape, generator=generator)
        eps = torch.randn(x_0.shape, generator=generator)
        t = torch.randint(1000, (batch_size,), generator=generator)
        dropped = torch.rand(batch_size, generator=generator) < 0.1
        condition = embeddings[captions[index].masked_fill(dropped, len(CAPTIONS))]
        x_t = scheduler.add_noise(x_0, eps, t).contiguous(memory_format=torch.channels_last)
        return F.mse_loss(model(x_t, t, condition).sample, eps)

    ema = optimize(model, loss, steps, adamw(model, lr=1e-3), decay=0.9995)
    StableDiffusionPipeline(
        vae=autoencoder, text_encoder=text_encoder, tokenizer=tokenizer, unet=ema,
        scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    ).to(dtype=torch.float16).save_pretrained(output)  # fmt: skip


def statistics(output: Path, data_dir: str = DATA_DIR, num_features: int = 2000) -> None:
    """Store the reference statistics: the 10,000 test images under the protocol `clip`.

    Args:
        output: The teacher's folder, with its CLIP.
        data_dir: Folder with Fashion-MNIST's IDX files.
        num_features: Number of images whose features are stored.
    """
    protocol = clip_protocol(CLIPFeatures.from_pretrained(str(output / "clip")))
    photographs = load_photographs(data_dir, "t10k")
    generator = torch.Generator().manual_seed(6)
    collector = Collector(protocol)
    for index in torch.arange(len(photographs.labels)).split(500):
        images, _ = draw(photographs, index, generator)
        collector.update(protocol.prepare(list(to_uint8(images))))
    found = collector.compute(source="Fashion-MNIST's test images, composed")
    found._replace(features=found.features[:num_features]).save(output / "reference.safetensors")


if __name__ == "__main__":
    from jsonargparse import auto_cli

    try:
        auto_cli([clip, vae, sharpen, unet, statistics], as_positional=False)
    except UsageError as error:
        sys.exit(f"error: {error}")
