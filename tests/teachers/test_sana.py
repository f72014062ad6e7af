"""A SANA teacher: prompts, sizes, sampling as in the stock pipeline, and errors.

`tests/method/test_parity_flow.py` compares its numbers with the official code's.
"""

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SanaPipeline, SanaTransformer2DModel

from sid_lsg.generation.models import load_model
from sid_lsg.teachers import families
from sid_lsg.teachers.sana import Sana
from tests.helpers.golden import error
from tests.helpers.model_folders import edit, refusal
from tests.helpers.paths import GOLDEN_FLOW

FOLDER = GOLDEN_FLOW / "pipelines" / "tiny_sana"
PROMPTS = ["a photo of the red cat", "two dogs running and jumping"]
KEY = "complex_human_instruction"
LINES = ["Describe a painting of:", "-> "]


@pytest.fixture(scope="module")
def teacher() -> Sana:
    return load(FOLDER)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy of the teacher's folder that a test may damage."""
    return Path(shutil.copytree(FOLDER, tmp_path / "model"))


def load(folder: Path, **options: Any) -> Sana:
    loaded = families.load(str(folder), **options)
    assert isinstance(loaded, Sana)
    return loaded


# ---------------------------------------------------------------------- the stock pipeline


@pytest.mark.parametrize("euler", [False, True])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.slow
def test_the_teacher_samples_as_its_stock_pipeline(
    folder: Path, guidance: float, euler: bool
) -> None:
    if euler:
        shutil.rmtree(folder / "scheduler")
        FlowMatchEulerDiscreteScheduler(shift=2.0).save_pretrained(folder / "scheduler")
        name = "FlowMatchEulerDiscreteScheduler"
        edit(folder / "model_index.json", scheduler=["diffusers", name])
    stock = SanaPipeline.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    latents = stock(
        PROMPTS,
        num_inference_steps=4,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)],
        height=256,
        width=256,
        use_resolution_binning=False,
        output_type="latent",
    ).images
    own = load(folder)
    images = own.sample_reference(PROMPTS, [5, 6], 4, guidance)
    torch.testing.assert_close(images, own.decode(latents), rtol=0, atol=1e-5)


@pytest.mark.parametrize("lines", [None, LINES, []])
def test_stock_diffusers_reads_a_prompt_as_the_teacher(
    folder: Path, lines: list[str] | None
) -> None:
    """A generator is sampled with its instruction, and the exported tokenizer keeps it."""
    if lines is not None:
        edit(folder / "tokenizer" / "tokenizer_config.json", **{KEY: lines})
    own = load(folder)
    own.tokenizer.save_pretrained(folder / "tokenizer")
    own = load(folder)
    assert (KEY in own.pipeline_options) == (lines is not None)
    stock = SanaPipeline.from_pretrained(folder)
    prompts = [" A Red CAT ", "a cat " * 200]
    expected = own.encode_prompts(prompts)
    embeds, mask, *_ = stock.encode_prompt(
        prompts, False, complex_human_instruction=own.instruction
    )
    torch.testing.assert_close(expected["encoder_hidden_states"], embeds, rtol=0, atol=1e-6)
    assert torch.equal(expected["encoder_attention_mask"], mask)


# ---------------------------------------------------------------------- conditioning


def test_an_empty_prompt_is_one_token_without_the_instruction(teacher: Sana) -> None:
    for prompts in ([""], ["a cat", "  "]):
        mask = teacher.encode_prompts(prompts)["encoder_attention_mask"]
        assert mask.shape == (len(prompts), 300)
        assert mask[-1].tolist() == [1] + [0] * 299


def test_prompts_are_encoded_a_few_at_a_time(teacher: Sana) -> None:
    prompts = [f"{number} cats" for number in range(20)]
    found = teacher.encode_prompts(prompts)
    for number in (0, 15, 16, 19):
        for name, value in teacher.encode_prompts(prompts[number : number + 1]).items():
            torch.testing.assert_close(found[name][number], value[0], rtol=1e-5, atol=1e-5)


def test_data_workers_tokenize(teacher: Sana) -> None:
    tokenize = pickle.loads(pickle.dumps(teacher.tokenize))
    found, expected = tokenize(PROMPTS), teacher.tokenize(PROMPTS)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_end_of_a_long_prompt_is_reported(folder: Path, teacher: Sana) -> None:
    assert teacher.cut_off("a cat") == ""
    long = "a cat " * 300 + "Sitting"
    assert teacher.cut_off(long).endswith("sitting")
    kept = long.lower().removesuffix(teacher.cut_off(long))
    assert teacher.cut_off(kept) == ""
    assert teacher.cut_off(kept + "cat") == "cat"


# ---------------------------------------------------------------------- resolution and images


@pytest.mark.parametrize(("resolution", "side"), [(None, 256), (32, 32), (96, 96)])
def test_the_resolution_decides_the_shapes(resolution: int | None, side: int) -> None:
    own = load(FOLDER, resolution=resolution)
    assert own.latent_shape == (8, side // 32, side // 32)
    assert own.pipeline_options == {
        "guidance_scale": 1, "height": side, "width": side, "use_resolution_binning": False,
    }  # fmt: skip
    assert own.sample_reference(["a"], [0], 1, 1.0).shape == (1, 3, side, side)


def test_the_stock_pipeline_makes_the_models_size() -> None:
    """Its own default is 1024 pixels, or one of a table of sizes."""
    for resolution, side in ((None, 256), (64, 64)):
        model = load_model(str(FOLDER), "pipeline", 1, 1.0, resolution)
        assert model.sample(["a cat"], [0]).shape == (1, 3, side, side)


def test_a_position_embedding_keeps_its_resolution(folder: Path) -> None:
    replace_transformer(folder, interpolation_scale=1)
    assert load(folder, resolution=256).image_size == (256, 256)
    message = refusal(folder, resolution=128)
    assert message.startswith("--model.resolution: this teacher's position embedding is for 256 ")


def test_images_are_encoded_and_decoded_with_the_models_scale(teacher: Sana) -> None:
    pixels = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    latent = teacher.vae.encode(pixels / 127.5 - 1).latent
    assert error(teacher.encode_images(pixels), latent * 0.41407) < 1e-5
    latents = torch.randn(2, 8, 2, 2)
    expected = teacher.vae.decode(latents / 0.41407).sample
    assert error(teacher.decode(latents), expected) < 1e-6


def test_the_configuration_scales_the_time(folder: Path) -> None:
    """The teachers of SANA-Sprint take t; the stock pipeline scales it by the same number."""
    edit(folder / "transformer" / "config.json", timestep_scale=0.001)
    own = load(folder)
    t = torch.tensor([0.25, 1.0])
    torch.testing.assert_close(own.schedule.network_time(t), t)
    condition = own.encode_prompts(PROMPTS)
    noises = [torch.randn(2, *own.latent_shape)]
    expected = own.pipeline(own.network, own.stock_scheduler(999, 1, "fresh"))(
        PROMPTS, num_inference_steps=1, latents=noises[0], output_type="latent",
        **own.pipeline_options,
    ).images  # fmt: skip
    with torch.no_grad():
        found = own.sample(own.network, condition, noises, 999)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


# ---------------------------------------------------------------------- errors


def replace_transformer(folder: Path, **config: Any) -> None:
    """Replace the folder's transformer with a random one of another configuration."""
    changed = SanaTransformer2DModel.load_config(folder / "transformer") | config
    SanaTransformer2DModel.from_config(changed).save_pretrained(folder / "transformer")


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"in_channels": 9, "out_channels": 9}, "takes 9 channels and its VAE's latents have 8"),
        ({"out_channels": 16}, "takes 8 channels and returns 16"),
        ({"caption_channels": 48}, "attends to 48 features and its text_encoder outputs 16"),
        ({"guidance_embeds": True}, "takes guidance as an input: it is already distilled"),
    ],
    ids=["channels", "learned variance", "text", "Sprint"],
)
def test_parts_that_do_not_fit_together_are_rejected(
    folder: Path, config: dict[str, Any], found: str
) -> None:
    replace_transformer(folder, **config)
    message = refusal(folder)
    assert message.startswith("--model.teacher: ")
    assert found in message
    assert "Give a text-to-image model of SANA, such as Efficient-Large-Model/Sana" in message


def test_a_sprint_pipeline_is_rejected(folder: Path) -> None:
    edit(folder / "model_index.json", _class_name="SanaSprintPipeline")
    replace_transformer(folder, guidance_embeds=True)
    assert "Sprint" in refusal(folder)


@pytest.mark.parametrize("part", Sana.parts)
def test_a_folder_without_a_part_is_rejected(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    assert f"is not in SANA's layout: it lacks {part} (SanaPipeline)" in refusal(folder)


# ---------------------------------------------------------------------- untrained models


def numbers(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "hub", "transformer"),
    [("sana-0.6b", "600M", 591_747_872), ("sana-1.6b", "1600M", 1_604_462_752)],
)
@pytest.mark.slow
def test_architectures_have_the_published_parameter_counts(
    name: str, hub: str, transformer: int
) -> None:
    for model in (
        f"architecture:{name}",
        f"Efficient-Large-Model/Sana_{hub}_1024px_diffusers",
    ):
        teacher = families.outline(model)
        assert isinstance(teacher, Sana)
        assert numbers(teacher.network) == transformer
        assert numbers(teacher.vae) == 312_250_275
        assert numbers(teacher.text_encoder) == 2_614_341_888
        assert teacher.latent_shape == (32, 32, 32)
        assert teacher.image_size == (1024, 1024)
        assert 500 < teacher.tokenize(["a cat"])["input_ids"].shape[1] < 550
    assert families.outline(f"architecture:{name}", resolution=512).latent_shape == (32, 16, 16)


def test_the_small_architecture_has_the_same_blocks() -> None:
    small, full = (families.outline(f"architecture:{name}") for name in ("sana-small", "sana-0.6b"))
    names = [set(t.network.state_dict()) for t in (small, full)]
    assert names[0] == names[1]
    assert 50 < numbers(full.network) / numbers(small.network) < 150


def test_random_weights_give_plausible_outputs() -> None:
    teacher = families.load("architecture:sana-small", resolution=128)
    condition = teacher.encode_prompts(["a red shoe", "a blue hat"])
    features = condition["encoder_hidden_states"]
    assert features.shape == (2, 300, 256)
    assert 0.1 < features.std() < 10
    assert not torch.equal(features[0], features[1])
    x_t = torch.randn(2, *teacher.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        v = teacher.predict(teacher.network, x_t, torch.tensor([0.02, 0.98]), condition)
    assert 0.1 < v.std() < 10
    assert 0.1 < teacher.decode(v).std() < 20


def test_an_outline_matches_the_folders_model(teacher: Sana) -> None:
    def shapes(teacher: Any) -> dict[str, tuple[torch.Size, torch.dtype]]:
        return {name: (t.shape, t.dtype) for name, t in teacher.state_dict().items()}

    found = families.outline(str(FOLDER))
    assert shapes(found) == shapes(teacher)
    assert {t.device.type for t in (*found.parameters(), *found.buffers())} == {"meta"}
