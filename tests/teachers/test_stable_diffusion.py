"""A Stable Diffusion teacher from a folder: how it is loaded, predicts, samples and decodes."""

import shutil
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import sid_lsg.files.sources
from sid_lsg.method.conditioning import expand
from sid_lsg.method.guidance import predict_guided
from sid_lsg.method.shapes import per_sample
from sid_lsg.networks.memory import set_frozen_precision
from sid_lsg.teachers.stable_diffusion import StableDiffusion
from tests.helpers.model_folders import WEIGHTS, edit

V_SCHEDULER = {"scheduler": "../tiny_sd_v/scheduler"}


@pytest.fixture(scope="module")
def teacher(tiny_sd: str) -> StableDiffusion:
    return StableDiffusion.from_pretrained(tiny_sd)


class Inputs(NamedTuple):
    """Latents, timesteps and prompts of two samples."""

    x_t: Tensor
    t: Tensor
    condition: dict[str, Tensor]


@pytest.fixture
def inputs(teacher: StableDiffusion) -> Inputs:
    x_t = torch.randn(2, *teacher.latent_shape, generator=torch.Generator().manual_seed(0))
    condition = teacher.encode_prompts(["a red cat", "two dogs"])
    return Inputs(x_t, torch.tensor([625, 20]), condition)


def seen_by(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which every call of the network appends its batch size."""
    sizes: list[int] = []
    forward = network.forward

    def counted(first: Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(first))
        return forward(first, *args, **kwargs)

    monkeypatch.setattr(network, "forward", counted)
    return sizes


# ---------------------------------------------------------------------- loading


def test_a_folder_gives_networks_and_a_schedule(teacher: StableDiffusion, tiny_sd: str) -> None:
    assert teacher.latent_shape == (4, 8, 8)
    assert teacher.schedule.prediction_type == "epsilon"
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas_cumprod = (1 - betas).cumprod(0)
    assert len(teacher.schedule) == 1000
    torch.testing.assert_close(
        teacher.schedule.alphas.double(), alphas_cumprod.sqrt(), rtol=1e-5, atol=0
    )
    for network, part in (
        (teacher.network, "unet"),
        (teacher.vae, "vae"),
        (teacher.text.text_encoder, "text_encoder"),
    ):
        stored = load_file(Path(tiny_sd, part, WEIGHTS[part]))
        own = {name.removeprefix("text_model."): p for name, p in network.named_parameters()}
        names = [name for name in stored if not name.endswith("position_ids")]
        assert sorted(own) == sorted(name.removeprefix("text_model.") for name in names)
        assert all(torch.equal(own[n.removeprefix("text_model.")], stored[n]) for n in names)


def test_half_precision_files_load_as_float32(folder: Path) -> None:
    for part, name in WEIGHTS.items():
        half = {key: value.half() for key, value in load_file(folder / part / name).items()}
        save_file(half, folder / part / name, {"format": "pt"})
    edit(folder / "text_encoder" / "config.json", dtype="float16")
    teacher = StableDiffusion.from_pretrained(str(folder))
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}


def test_files_with_the_names_of_early_releases_load(
    folder: Path, teacher: StableDiffusion
) -> None:
    """As in Stable Diffusion 1.5: other names in the VAE, a prefix in the text encoder."""
    names = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    path = folder / "vae" / WEIGHTS["vae"]
    weights = load_file(path)
    for new, old in names.items():
        found = [name for name in weights if "mid_block.attentions" in name and new in name]
        assert found
        weights |= {name.replace(new, old): weights.pop(name) for name in found}
    save_file(weights, path, {"format": "pt"})

    path = folder / "text_encoder" / WEIGHTS["text_encoder"]
    weights = {
        f"text_model.{name.removeprefix('text_model.')}": w for name, w in load_file(path).items()
    }
    weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(weights, path, {"format": "pt"})

    original = StableDiffusion.from_pretrained(str(folder))
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(original.decode(latents), teacher.decode(latents))
    ours, theirs = (t.encode_prompts(["a cat"]) for t in (original, teacher))
    assert torch.equal(ours["encoder_hidden_states"], theirs["encoder_hidden_states"])


def test_subfolders_can_select_a_v_prediction_scheduler(tiny_sd: str) -> None:
    teacher = StableDiffusion.from_pretrained(tiny_sd, subfolders=V_SCHEDULER)
    assert teacher.schedule.prediction_type == "v_prediction"


def test_a_part_may_be_in_a_subfolder_of_another_name(folder: Path) -> None:
    (folder / "unet").rename(folder / "unet_ema")
    teacher = StableDiffusion.from_pretrained(str(folder), subfolders={"unet": "unet_ema"})
    stored = load_file(folder / "unet_ema" / WEIGHTS["unet"])
    assert torch.equal(teacher.network.conv_in.weight, stored["conv_in.weight"])


def test_a_package_path_starts_at_the_package(
    tiny_sd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_sd, tmp_path / "demo" / "tiny")
    roots = {"sid_lsg": tmp_path}
    monkeypatch.setattr(sid_lsg.files.sources, "files", roots.__getitem__)
    assert StableDiffusion.from_pretrained("package:demo/tiny").latent_shape == (4, 8, 8)


def test_the_variant_is_loaded(folder: Path) -> None:
    for part, name in WEIGHTS.items():
        zero = {key: value * 0 for key, value in load_file(folder / part / name).items()}
        save_file(zero, folder / part / name.replace(".safe", ".fp16.safe"), {"format": "pt"})
    teacher = StableDiffusion.from_pretrained(str(folder), variant="fp16")
    assert not any(p.any() for p in teacher.parameters())


def test_the_default_device_is_ignored(tiny_sd: str) -> None:
    with torch.device("meta"):  # the benchmark creates its module on a GPU
        teacher = StableDiffusion.from_pretrained(tiny_sd)
    assert {t.device.type for t in (*teacher.parameters(), *teacher.buffers())} == {"cpu"}


def test_the_teacher_stays_frozen_and_in_eval_mode(tiny_sd: str) -> None:
    teacher = StableDiffusion.from_pretrained(tiny_sd)
    around = nn.ModuleList([teacher])  # as in the LightningModule
    around.train()
    assert around.training
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())


# ---------------------------------------------------------------------- predictions


def test_prompts_are_encoded_to_last_hidden_states(teacher: StableDiffusion) -> None:
    words = "a cat and a dog " * 40  # more than 77 tokens: truncated
    condition = teacher.encode_prompts(["a red cat", words])
    (embeddings,) = condition.values()
    assert list(condition) == ["encoder_hidden_states"]
    assert embeddings.shape == (2, 77, 32)
    assert not embeddings.requires_grad
    tokenizer, encoder = teacher.text.tokenizer, teacher.text.text_encoder
    ids = [tokenizer.bos_token_id, *tokenizer("a red cat", add_special_tokens=False).input_ids]
    ids += [tokenizer.eos_token_id] * (77 - len(ids))
    expected = encoder(torch.tensor([ids])).last_hidden_state[0]
    torch.testing.assert_close(embeddings[0], expected)


def guided(
    teacher: StableDiffusion, x_t: Tensor, t: Tensor, condition: Any, kappas: list[float]
) -> list[Tensor]:
    """Predict with the teacher's own network."""
    predict = partial(teacher.predict, teacher.network)
    return predict_guided(predict, x_t, t, condition, teacher.null_condition(), kappas)


@pytest.mark.parametrize("kappas", [[1], [1.0, 1]])
def test_without_guidance_the_network_is_called_once(
    teacher: StableDiffusion, inputs: Inputs, kappas: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, (x_t, t, condition) = teacher.network, inputs
    expected = network(x_t, t, **condition).sample
    sizes = seen_by(network, monkeypatch)
    predictions = guided(teacher, x_t, t, condition, kappas)
    assert sizes == [2]
    assert len(predictions) == len(kappas)
    assert all(torch.equal(prediction, expected) for prediction in predictions)


@pytest.mark.parametrize("kappas", [[3], [1, 2.5], [0.5, 0], [4.5, 4.5]])
def test_with_guidance_the_network_is_called_once_with_a_doubled_batch(
    teacher: StableDiffusion, inputs: Inputs, kappas: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, (x_t, t, condition) = teacher.network, inputs
    empty = teacher.encode_prompts(["", ""])
    c, u = (network(x_t, t, **prompts).sample for prompts in (condition, empty))
    sizes = seen_by(network, monkeypatch)
    predictions = guided(teacher, x_t, t, condition, kappas)
    assert sizes == [4]
    for kappa, prediction in zip(kappas, predictions, strict=True):
        torch.testing.assert_close(prediction, u + kappa * (c - u), rtol=1e-4, atol=1e-5)


def test_gradients_pass_through_the_frozen_weights_to_the_inputs(
    teacher: StableDiffusion, inputs: Inputs
) -> None:
    network, (x_t, t, condition) = teacher.network, inputs
    x_t.requires_grad_()
    kappa, empty = 2.5, teacher.encode_prompts(["", ""])

    def gradient(output: Tensor) -> Tensor:
        return torch.autograd.grad(output.square().sum() / 2, x_t)[0]

    (prediction,) = guided(teacher, x_t, t, condition, [kappa])
    c, u = (network(x_t, t, **prompts).sample for prompts in (condition, empty))
    expected = gradient(u + kappa * (c - u))
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(gradient(prediction), expected, rtol=1e-4, atol=1e-5)
    assert all(p.grad is None for p in teacher.parameters())


def test_predictions_have_the_dtype_of_the_latents(
    teacher: StableDiffusion, inputs: Inputs
) -> None:
    x_t, t, condition = inputs
    with torch.autocast("cpu", torch.bfloat16):
        raw = teacher.network(x_t, t, **condition).sample
        prediction = teacher.predict(teacher.network, x_t, t, condition)
    assert (raw.dtype, prediction.dtype) == (torch.bfloat16, torch.float32)


def test_the_null_prompt_is_encoded_once(tiny_sd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = StableDiffusion.from_pretrained(tiny_sd)
    expected = teacher.encode_prompts([""])["encoder_hidden_states"]
    calls = seen_by(teacher.text, monkeypatch)
    condition = expand({"encoder_hidden_states": expected}, 2)
    x_t, t = torch.zeros(2, 4, 8, 8), torch.tensor([5, 5])
    for _ in range(3):
        guided(teacher, x_t, t, condition, [2.0])
        assert torch.equal(teacher.null_condition()["encoder_hidden_states"], expected)
    assert calls == [1]


def test_decoding_reverses_the_scaling_without_clipping(teacher: StableDiffusion) -> None:
    latents = 30 * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    images = teacher.decode(latents)
    assert images.shape == (2, 3, 64, 64)
    assert images.dtype == torch.float32
    assert not images.requires_grad
    torch.testing.assert_close(images, teacher.vae.decode(latents / 0.18215).sample)
    assert images.abs().max() > 1


@pytest.mark.parametrize("subfolders", [None, V_SCHEDULER], ids=["epsilon", "v"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_teacher_samples_with_ddim(
    tiny_sd: str, subfolders: dict[str, str] | None, guidance: float
) -> None:
    teacher = StableDiffusion.from_pretrained(tiny_sd, subfolders=subfolders)
    schedule, condition = teacher.schedule, teacher.encode_prompts(["a cat", "a dog"])
    noises = [torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(s)) for s in (7, 3)]
    x, steps = torch.stack(noises), [501, 1, 0]  # two steps, and the end of the schedule
    with torch.no_grad():
        for now, then in pairwise(steps):
            t, after = torch.full((2,), now), torch.full((2,), then)
            (raw,) = guided(teacher, x, t, condition, [guidance])
            x_0 = schedule.x0(raw, x, t)
            eps = (x - per_sample(schedule.alpha(t), x) * x_0) / per_sample(schedule.sigma(t), x)
            x = schedule.add_noise(x_0, eps, after)
    state = torch.get_rng_state()
    images = teacher.sample_reference(["a cat", "a dog"], [7, 3], 2, guidance)
    torch.testing.assert_close(images, teacher.decode(x), rtol=1e-3, atol=1e-4)
    assert torch.equal(torch.get_rng_state(), state)


def test_bf16_weights_do_not_change_the_prompt_encodings(tiny_sd: str) -> None:
    """The teacher's samples use the same encodings as the generator's."""
    teacher = StableDiffusion.from_pretrained(tiny_sd)
    expected = torch.cat(
        [teacher.encode_prompts([text])["encoder_hidden_states"] for text in ("", "a cat")]
    )
    set_frozen_precision("bf16", teacher)
    seen: list[torch.Tensor] = []

    def keep(_: Any, args: Any, kwargs: dict[str, torch.Tensor]) -> None:
        seen.append(kwargs["encoder_hidden_states"])

    teacher.network.register_forward_pre_hook(keep, with_kwargs=True)
    teacher.sample_reference(["a cat"], [0], 2, 2.0)
    assert len(seen) == 2
    assert all(torch.equal(states, expected) for states in seen)


def test_sampling_does_not_change_the_null_prompt_of_the_training(tiny_sd: str) -> None:
    """The null prompt is encoded in mixed precision, whatever was sampled before."""
    found = []
    for sampled in (False, True):
        teacher = StableDiffusion.from_pretrained(tiny_sd)
        if sampled:
            teacher.sample_reference(["a cat"], [0], 1, 2.0)
        with torch.autocast("cpu", torch.bfloat16):
            found.append(teacher.null_condition()["encoder_hidden_states"])
    assert torch.equal(*found)
    assert not torch.equal(found[0], teacher.encode_prompts([""])["encoder_hidden_states"])


# ---------------------------------------------------------------------- resolution


@pytest.mark.parametrize(("resolution", "side"), [(16, 2), (64, 8), (128, 16)])
def test_a_resolution_sets_the_size_of_latents_and_images(
    tiny_sd: str, resolution: int, side: int
) -> None:
    teacher = StableDiffusion.from_pretrained(tiny_sd, resolution=resolution)
    assert teacher.latent_shape == (4, side, side)
    images = teacher.sample_reference(["a cat"], [0], 1, 1.0)
    assert images.shape == (1, 3, resolution, resolution)


def test_a_network_for_non_square_images_keeps_its_size(folder: Path) -> None:
    edit(folder / "unet" / "config.json", sample_size=[8, 16])
    assert StableDiffusion.from_pretrained(str(folder)).latent_shape == (4, 8, 16)
