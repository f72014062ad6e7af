"""A teacher's prediction equals that of its stock pipeline, which is run and recorded here.

Another family joins by one entry in `CALLS`. The stock pipelines encode the prompts, guide and
scale the time themselves; ours gets the prompts, the latents and the times.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import diffusers
import pytest
import torch
from diffusers import FluxTransformer2DModel, PixArtTransformer2DModel

from sid_lsg.method.guidance import Guiding, predict_guided
from sid_lsg.teachers import families
from tests.helpers.golden import error
from tests.helpers.paths import GOLDEN_FLOW
from tests.helpers.stock_calls import recorded
from tests.helpers.tiny_pipelines import tiny_pipeline

PIPELINES = GOLDEN_FLOW / "pipelines"
SAME = 2e-5  # relative L2
PROMPTS = ["A red Cat ", "two dogs running and jumping, " * 40]


class Call(NamedTuple):
    """Arguments of a family's stock pipeline.

    Attributes:
        folder: Makes or finds the model.
        guided: Arguments for a guidance scale.
        options: Other arguments.
    """

    folder: Callable[[Path], Path]
    guided: Callable[[float], dict[str, Any]] = lambda scale: {"guidance_scale": scale}
    options: Mapping[str, Any] = MappingProxyType({})


def pixart_alpha(place: Path) -> Path:
    """Make a model that is told the image's size."""
    folder = Path(shutil.copytree(PIPELINES / "tiny_pixart", place / "tiny_pixart_alpha"))
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = "PixArtAlphaPipeline"
    (folder / "model_index.json").write_text(json.dumps(index))
    config = dict(PixArtTransformer2DModel.load_config(folder / "transformer"))
    config |= {"sample_size": 128, "use_additional_conditions": None}
    config |= {"attention_head_dim": 12, "cross_attention_dim": 24}
    torch.manual_seed(0)
    PixArtTransformer2DModel.from_config(config).save_pretrained(folder / "transformer")
    return folder


def flux_true_cfg(place: Path) -> Path:
    """Make a model without a guidance embedding."""
    folder = Path(shutil.copytree(PIPELINES / "tiny_flux", place / "tiny_flux"))
    config = dict(FluxTransformer2DModel.load_config(folder / "transformer"))
    torch.manual_seed(0)
    network = FluxTransformer2DModel.from_config(config | {"guidance_embeds": False})
    network.save_pretrained(folder / "transformer")
    return folder


PIXART = {"use_resolution_binning": False, "clean_caption": False}
CALLS = {
    "flux": Call(lambda _: PIPELINES / "tiny_flux"),
    "flux_true_cfg": Call(
        flux_true_cfg,
        lambda scale: {"true_cfg_scale": scale, "negative_prompt": [""] * len(PROMPTS)},
    ),
    "flux2": Call(lambda _: tiny_pipeline("flux2")),
    "qwen_image": Call(
        lambda _: tiny_pipeline("qwen_image"),
        lambda scale: {"true_cfg_scale": scale, "negative_prompt": [""] * len(PROMPTS)},
    ),
    "z_image": Call(
        lambda _: tiny_pipeline("z_image"), lambda scale: {"guidance_scale": scale - 1}
    ),
    "pixart_sigma": Call(lambda _: PIPELINES / "tiny_pixart", options=PIXART),
    "pixart_alpha": Call(pixart_alpha, options=PIXART),
}


@pytest.fixture(scope="module", params=CALLS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    call = CALLS[request.param]
    folder = call.folder(tmp_path_factory.mktemp("models"))
    stock = cache(lambda: diffusers.DiffusionPipeline.from_pretrained(folder))()
    return call, families.load(str(folder)), stock


@pytest.mark.parametrize("scale", [1.0, 3.5])
@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
@pytest.mark.slow
def test_a_prediction_equals_the_stock_pipelines(
    family: Any, scale: float, size: tuple[int, int]
) -> None:
    call, teacher, stock = family
    height, width = size
    steps, images = recorded(
        stock, PROMPTS, height=height, width=width, **call.guided(scale), **call.options
    )
    condition, null = teacher.encode_prompts(PROMPTS), teacher.null_condition()
    factor = teacher.image_size[0] // teacher.latent_shape[1]
    shape = (teacher.latent_shape[0], height // factor, width // factor)
    compared = 0
    for prediction, time, packed in steps:
        x_t, expected = (teacher.unpacked(value, shape) for value in (packed, prediction))
        if teacher.schedule.time_dtype.is_floating_point:
            t = time / 1000
        elif time != time.long():
            continue  # a time between the teacher's
        else:
            t = time.long()

        def predict(*args: Any) -> torch.Tensor:
            return teacher.predict(teacher.network, *args)

        with torch.no_grad():
            times, own = t.expand(len(x_t)), Guiding(rescale=teacher.rescale)
            if teacher.embeds_guidance:  # the pipeline's usual guidance
                own = own._replace(true_cfg=False)
            (found,) = predict_guided(predict, x_t, times, condition, null, [scale], own)
        assert error(found, expected) < SAME
        compared += 1
    assert compared
    teacher.image_size, teacher.latent_shape = size, shape
    own = teacher.sample_reference(PROMPTS, range(len(PROMPTS)), len(steps), scale)
    assert error(own.clamp(-1, 1), images) < 5 * SAME
