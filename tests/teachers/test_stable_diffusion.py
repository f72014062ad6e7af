"""A Stable Diffusion teacher from a folder: its outputs, and the errors for unusable folders."""

import pickle
import shutil
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub.constants
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import sid_lsg.files.sources
from sid_lsg.messages.errors import UsageError
from sid_lsg.method.conditioning import expand
from sid_lsg.method.guidance import predict_guided
from sid_lsg.method.shapes import per_sample
from sid_lsg.networks.memory import set_frozen_precision
from sid_lsg.teachers.stable_diffusion import StableDiffusion
from tests.helpers.damage import Trap
from tests.helpers.model_folders import edit

V_SCHEDULER = {"scheduler": "../tiny_sd_v/scheduler"}
WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
PICKLES = {
    "unet": "diffusion_pytorch_model.bin",
    "vae": "diffusion_pytorch_model.bin",
    "text_encoder": "pytorch_model.bin",
}
LAYOUT = ", ".join(StableDiffusion.parts)


@pytest.fixture(scope="module")
def teacher(tiny_sd: str) -> StableDiffusion:
    return StableDiffusion.from_pretrained(tiny_sd)


@pytest.fixture
def folder(tiny_sd: str, tmp_path: Path) -> Path:
    """Return a copy of the teacher's folder that a test may damage."""
    return Path(shutil.copytree(tiny_sd, tmp_path / "model"))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


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


def refusal(model: str | Path, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        StableDiffusion.from_pretrained(str(model), **options)
    return str(caught.value)


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


@pytest.mark.parametrize("resolution", [100, 8, 0, -64, 72])
@pytest.mark.slow
def test_an_unusable_resolution_is_rejected(tiny_sd: str, resolution: int) -> None:
    message = refusal(tiny_sd, resolution=resolution)
    assert message.startswith(f"--model.resolution: {resolution} pixels")
    assert "multiple of 16" in message
    assert refusal(tiny_sd, resolution=resolution, option="model").startswith("--resolution: ")


def test_a_network_without_a_size_needs_a_resolution(folder: Path) -> None:
    edit(folder / "unet" / "config.json", sample_size=None)
    assert StableDiffusion.from_pretrained(str(folder), resolution=32).latent_shape == (4, 4, 4)
    assert "--model.resolution" in refusal(folder)


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize("model", ["no/such/folder", "./nothing", "nothing", "~/no/such", "/nope"])
def test_a_missing_folder_is_rejected(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal(model)
    assert message.startswith("--model.teacher: there is no folder")
    assert Path(model).name in message
    assert "Give a diffusers folder" in message


def test_a_missing_package_folder_is_rejected() -> None:
    message = refusal("package:demo/no_such_teacher")
    assert message.startswith("--model.teacher: there is no folder")
    assert str(Path(sid_lsg.__file__).parent / "demo" / "no_such_teacher") in message


@pytest.mark.usefixtures("offline")
def test_an_unreachable_hub_id_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal("nobody/no-such-model", revision="main")
    assert message.startswith("--model.teacher: could not load 'nobody/no-such-model' (the Hub can")
    assert "HF_HUB_OFFLINE is set" in message
    assert f"the cache {huggingface_hub.constants.HF_HUB_CACHE!r} does not hold it" in message
    assert "Give its folder" in message


@pytest.mark.parametrize("part", StableDiffusion.parts)
def test_a_folder_without_a_part_is_rejected(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    message = refusal(folder)
    assert message.startswith("--model.teacher: ")
    assert f"it lacks {part} (StableDiffusionPipeline)" in message
    assert LAYOUT in message
    assert "--model.loading.subfolders" in message


@pytest.mark.parametrize("foreign", ["text_encoder_2", "transformer"])
def test_a_model_of_another_family_is_rejected(folder: Path, foreign: str) -> None:
    (folder / foreign).mkdir()
    edit(folder / "model_index.json", _class_name="StableDiffusionXLPipeline")
    message = refusal(folder)
    assert message.startswith("--model.teacher: ")
    assert f"it holds {foreign} (StableDiffusionXLPipeline)" in message
    assert LAYOUT in message


def test_a_single_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    message = refusal(tmp_path / "model.safetensors")
    assert message.startswith(f"--model.teacher: '{tmp_path}/model.safetensors' is a file.")
    assert LAYOUT in message
    assert "StableDiffusionPipeline.from_single_file(" in message


def test_an_unknown_part_in_subfolders_is_rejected(tiny_sd: str) -> None:
    message = refusal(tiny_sd, subfolders={"unett": "unet_ema"})
    assert message.startswith("--model.loading.subfolders: 'unett' is not a part")
    assert LAYOUT in message


def test_a_missing_subfolder_is_rejected(tiny_sd: str) -> None:
    message = refusal(tiny_sd, subfolders={"unet": "unet_ema"})
    assert "it lacks unet" in message
    assert "--model.loading.subfolders" in message


def replace_unet(folder: Path, **config: Any) -> None:
    """Replace the folder's UNet with a random one of another configuration."""
    changed = UNet2DConditionModel.load_config(folder / "unet") | config
    UNet2DConditionModel.from_config(changed).save_pretrained(folder / "unet")


def replace_prediction(folder: Path) -> None:
    edit(folder / "scheduler" / "scheduler_config.json", prediction_type="sample")


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda f: replace_unet(f, in_channels=9), "takes 9 channels and its VAE's latents have 4"),
        (lambda f: replace_unet(f, cross_attention_dim=48), "attends to 48 features and its text"),
        (
            lambda f: replace_unet(f, class_embed_type="timestep"),
            "the config of its unet has class_embed_type 'timestep', not null",
        ),
        (replace_prediction, "prediction_type is 'sample', not one of epsilon, v_prediction"),
    ],
    ids=["inpainting", "cross-attention", "class embedding", "sample prediction"],
)
def test_parts_that_do_not_fit_together_are_rejected(
    folder: Path, spoil: Callable[[Path], None], found: str
) -> None:
    spoil(folder)
    message = refusal(folder)
    assert message.startswith("--model.teacher: ")
    assert found in message
    assert "Give a text-to-image model of Stable Diffusion" in message


@pytest.mark.parametrize("part", WEIGHTS)
def test_pickled_weights_are_never_opened(folder: Path, part: str, tmp_path: Path) -> None:
    (folder / part / WEIGHTS[part]).unlink()
    mark = tmp_path / "unpickled"
    (folder / part / PICKLES[part]).write_bytes(pickle.dumps(Trap(mark)))
    message = refusal(folder)
    assert not mark.exists()
    assert message.startswith(f"--model.teacher: could not load the {part} of")
    assert f"its weights are only there as {PICKLES[part]}, a pickle file" in message
    assert 'from_pretrained("MODEL", use_safetensors=False).save_pretrained("FOLDER")' in message


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize("found", ["a Git LFS pointer", "half a file"])
def test_incomplete_weights_are_rejected(folder: Path, part: str, found: str) -> None:
    path = folder / part / WEIGHTS[part]
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0a1b2c\nsize 835584\n"
    path.write_bytes(pointer if found == "a Git LFS pointer" else path.read_bytes()[:10_000])
    assert refusal(folder).startswith(f"--model.teacher: could not load the {part} of")


@pytest.mark.parametrize("part", WEIGHTS)
def test_a_missing_weight_is_rejected(folder: Path, part: str) -> None:
    path = folder / part / WEIGHTS[part]
    weights = load_file(path)
    weights.pop(max(weights, key=lambda name: weights[name].numel()))
    save_file(weights, path, {"format": "pt"})
    assert refusal(folder).startswith("--model.teacher: ")


@pytest.mark.parametrize(
    "path", ["model_index.json", "text_encoder/config.json", "scheduler/scheduler_config.json"]
)
def test_a_malformed_json_file_is_rejected(folder: Path, path: str) -> None:
    (folder / path).write_text("{")
    assert refusal(folder).startswith("--model.teacher: ")


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_an_incomplete_tokenizer_is_rejected(folder: Path, name: str) -> None:
    (folder / "tokenizer" / name).unlink()
    found = f"its tokenizer cannot be used: it has neither tokenizer.json nor {name}"
    assert refusal(folder).startswith(f"--model.teacher: {found}")


def test_a_missing_variant_is_rejected(tiny_sd: str) -> None:
    message = refusal(tiny_sd, variant="fp16")
    assert message.startswith("--model.teacher: could not load the unet of")
    assert "fp16" in message
