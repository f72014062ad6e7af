"""Published scores equal independent computations, and notice other preprocessing."""

import html
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertTokenizer, CLIPModel, CLIPTokenizer, Dinov2Config, Dinov2Model

from sid_lsg.messages.errors import UsageError
from sid_lsg.metrics.aesthetic import AestheticConfig, AestheticPredictor
from sid_lsg.metrics.evaluator import Evaluator
from sid_lsg.metrics.features import _interpolated
from sid_lsg.metrics.image_reward import ImageReward, RewardModel
from sid_lsg.metrics.inception import InceptionFeatures
from sid_lsg.metrics.loaded import TEACHER, check_inputs, load_scores
from sid_lsg.metrics.manifold import gaussian_distance
from sid_lsg.metrics.protocol import EvaluationProtocol, clean256
from sid_lsg.metrics.published import SCORES
from sid_lsg.metrics.reference import load_references, stored_name
from sid_lsg.metrics.statistics import Moments
from sid_lsg.options.choices import PUBLISHED_SCORES
from tests.helpers.embedders import make_clip, write_inception
from tests.helpers.statistics import scipy_fid

OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat", "two", "dogs"]
TEXTS = ["a red cat", "two dogs", "&amp;lt; a cat", "a red cat", "two dogs", "a " * 100]
COUNT = 24  # more images than features: covariances are regular
Pixels = np.ndarray[Any, Any]


# ------------------------------------------------------------- networks and images in miniature

TOWER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = TOWER | {"intermediate_size": 32, "image_size": 32, "patch_size": 8}
REWARD_TEXT = TOWER | {
    "intermediate_size": 32, "max_position_embeddings": 40, "vocab_size": len(BERT),
}  # fmt: skip
REWARD_SIZES = VISION, REWARD_TEXT


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, tiny_sd: str) -> dict[str, str]:
    """Write tiny random networks of the published classes; return where each score's is."""
    root = tmp_path_factory.mktemp("networks")
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        patch.setattr(RewardModel, "SIZES", REWARD_SIZES)
        make_clip(root / "clip", Path(tiny_sd, "tokenizer"))
        for name, model in (
            ("dinov2", Dinov2Model(Dinov2Config(**TOWER, patch_size=14, image_size=224))),
            ("aesthetic", AestheticPredictor(AestheticConfig(**VISION, projection_dim=8))),
        ):
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.data += 0.2 * torch.randn_like(parameter)
            model.save_pretrained(root / name)
        reward = RewardModel()
        for parameter in reward.parameters():
            if parameter.dim() > 1:
                parameter.data += 0.2 * torch.randn_like(parameter)
    (root / "reward").mkdir()
    (root / "reward" / "vocab.txt").write_text("\n".join(BERT) + "\n")
    save_file(reward.state_dict(), root / "reward" / "model.safetensors")
    write_inception(root / "inception.pt")
    clip, dinov2 = str(root / "clip"), str(root / "dinov2")
    return {
        "cmmd": clip, "pickscore": clip, "hpsv2": clip, "fd_dinov2": dinov2, "diversity": dinov2,
        "aesthetic": str(root / "aesthetic"), "image_reward": str(root / "reward"),
        "fid_patch": str(root / "inception.pt"), "fid_clean": str(root / "inception.pt"),
    }  # fmt: skip


def reward_model(source: str) -> RewardModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RewardModel, "SIZES", REWARD_SIZES)
        model = RewardModel()
    model.load_state_dict(load_file(Path(source, "model.safetensors")))
    return model.eval()


def photos(seed: int, height: int, width: int) -> Tensor:
    """Draw smooth images with edges, of several colours: [N, 3, height, width] uint8."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(COUNT, 3, 9, 7, generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode="bicubic")
    edges = (torch.rand(COUNT, 1, height, width, generator=generator) > 0.9).float()
    level = torch.rand(COUNT, 3, 1, 1, generator=generator)
    return (255 * (0.7 * smooth + 0.3 * edges) * level).clamp(0, 255).byte()


# ------------------------------------------------------------- preprocessing, with Pillow alone

FILTER = Image.Resampling


def squared(image: Image.Image, shift: int) -> Image.Image:
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2 + shift, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


def shorter(image: Image.Image, size: int, how: FILTER, shift: int, rounded: bool) -> Image.Image:
    width, height = image.size
    scale = size / min(width, height)
    image = image.resize((int(width * scale + 1e-9), int(height * scale + 1e-9)), how)
    left, top = ((side - size) / 2 for side in image.size)
    left, top = (round(left), round(top)) if rounded else (int(left), int(top))
    return image.crop((left + shift, top, left + shift + size, top + size))


def floats(image: Image.Image, size: tuple[int, int], how: FILTER) -> Pixels:
    planes = [Image.fromarray(plane) for plane in np.asarray(image, np.float32).transpose(2, 0, 1)]
    return np.stack([np.asarray(plane.resize(size, how)) for plane in planes])


def prepared(name: str, image: Image.Image, size: int, how: FILTER, shift: int) -> Pixels:
    """Prepare an image for a score, as its paper or code says: [3, size, size] in 0..255."""
    if name == "cmmd":
        image = squared(image, shift).resize((size, size), how)
    elif name in ("fd_dinov2", "diversity"):
        image = (squared(image, 0) if shift else image).resize((size, size), how)
    elif name == "fid_clean":
        return floats(squared(image, 0) if shift else image, (size, size), how).clip(0, 255)
    elif name == "fid_patch":
        left, top = (round((side - size) / 2) for side in image.size)
        image = image.crop((left + shift, top, left + shift + size, top + size))
    elif name == "hpsv2":
        scale = size / max(image.size)
        width, height = (round(side * scale) for side in image.size)
        left, top = (size - width) // 2, (size - height) // 2
        canvas = np.zeros((3, size, size), np.float32)
        place = (slice(None), slice(top + shift, top + shift + height), slice(left, left + width))
        canvas[place] = floats(image, (width, height), how)
        return canvas
    else:
        image = shorter(image, size, how, shift, rounded=name != "pickscore")
    return np.asarray(image, np.float32).transpose(2, 0, 1)


def expected(
    name: str,
    source: str,
    images: Tensor,
    real: Tensor,
    how: FILTER = FILTER.BICUBIC,
    shift: int = 0,
    normalisation: Any = None,
    first: int | None = None,
) -> float:
    """Compute a score by its formula, in float64 once there are features."""
    network, size, mean_std, features = networks(name, source)
    mean, std = (torch.tensor(v)[:, None, None] for v in normalisation or mean_std)

    def pixels(batch: Tensor) -> Tensor:
        pictures = [Image.fromarray(i.permute(1, 2, 0).numpy()) for i in batch]
        if first:  # an intermediate size
            ratio = first / min(pictures[0].size)
            shape = tuple(round(side * ratio) for side in pictures[0].size)
            pictures = [picture.resize(shape, how) for picture in pictures]
        found = np.stack([prepared(name, picture, size, how, shift) for picture in pictures])
        return (torch.from_numpy(found) / 255 - mean) / std

    texts = [TEXTS[i % len(TEXTS)] for i in range(COUNT)]
    with torch.no_grad():
        x = features(network, pixels(images)).double()
        if name in ("fd_dinov2", "fid_clean", "fid_patch"):
            return scipy_fid(x, features(network, pixels(real)).double())
        if name == "cmmd":
            x, y = F.normalize(x, dim=1), F.normalize(features(network, pixels(real)).double())
            kernels = [torch.exp(-torch.cdist(a, b, compute_mode=EXACT).square() / 200).mean()
                       for a, b in ((x, x), (y, y), (x, y))]  # fmt: skip
            return float(1000 * (kernels[0] + kernels[1] - 2 * kernels[2]))
        if name == "diversity":
            means = []
            for text in dict.fromkeys(texts):
                group = F.normalize(x[[t == text for t in texts]], dim=1)
                pairs = [1 - a @ b for i, a in enumerate(group) for b in group[:i]]
                means.append(float(torch.stack(pairs).mean()))
            return float(np.mean(means))
        return float(RATINGS[name](network, x, texts, source).mean())


EXACT = "donot_use_mm_for_euclid_dist"


def networks(name: str, source: str) -> tuple[Any, int, Any, Callable[..., Tensor]]:
    """Return a score's network, input size, normalisation, and how it computes features."""
    if name in ("cmmd", "pickscore", "hpsv2"):
        clip = CLIPModel.from_pretrained(source)
        return clip, 32, OPENAI, lambda n, p: n.visual_projection(n.vision_model(p).pooler_output)
    if name in ("fd_dinov2", "diversity"):
        return Dinov2Model.from_pretrained(source), 224, IMAGENET, lambda n, p: n(p).pooler_output
    if name == "aesthetic":
        model = AestheticPredictor.from_pretrained(source)
        return model, 32, OPENAI, lambda n, p: n(p).image_embeds
    if name == "image_reward":
        model = reward_model(source)
        return model, 32, OPENAI, lambda n, p: n.vision(p).last_hidden_state.flatten(1)
    grey = ([128 / 255] * 3, [128 / 255] * 3)
    return torch.jit.load(source).layers, 299, grey, lambda n, p: n(p).flatten(1)


def of_clip(clip: Any, x: Tensor, texts: list[str], source: str) -> Tensor:
    words = CLIPTokenizer.from_pretrained(source)
    limit = clip.config.text_config.max_position_embeddings
    ids = words(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
    described = clip.text_projection(clip.text_model(**ids).pooler_output).double()
    return (F.normalize(x, dim=1) * F.normalize(described, dim=1)).sum(1)


def of_reward(model: Any, x: Tensor, texts: list[str], source: str) -> Tensor:
    words = BertTokenizer.from_pretrained(source)
    tokens = words(texts, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    image = x.float().unflatten(1, (-1, 16))
    read = model.text(tokens.input_ids, tokens.attention_mask, encoder_hidden_states=image)
    x = read.last_hidden_state[:, 0].double()
    for layer in model.double().head.values():
        x = layer(x)
    return (x[:, 0] - 0.16717362830052426) / 1.0333394966054072


def of_aesthetic(model: Any, x: Tensor, texts: list[str], source: str) -> Tensor:
    x = F.normalize(x, dim=1)
    for number in "02467":
        layer = model.layers[number].double()
        x = x @ layer.weight.T + layer.bias
    return x[:, 0]


RATINGS: dict[str, Callable[..., Tensor]] = {
    "pickscore": lambda n, x, t, s: n.logit_scale.double().exp() * of_clip(n, x, t, s),
    "hpsv2": lambda n, x, t, s: of_clip(n, x, [html.unescape(html.unescape(i)) for i in t], s),
    "aesthetic": of_aesthetic,
    "image_reward": of_reward,
}


# ---------------------------------------------------------------------- scores


def reward_from_disk(source: str, option: str) -> ImageReward:
    return ImageReward(reward_model(source), BertTokenizer.from_pretrained(source))


def judge(name: str, source: str, protocol: EvaluationProtocol, real: Path | None) -> Evaluator:
    about = SCORES[name]
    with pytest.MonkeyPatch.context() as patch:
        if name == "image_reward":  # its loader has its own tests
            patch.setitem(SCORES, name, replace(about, load=reward_from_disk))
        with pytest.warns(UserWarning, match=f"{name}_own_{about.protocol}"):
            scores = load_scores({name: source}, protocol, "scores")
    load_references(scores, str(real) if real else None, "reference", "scores")
    return Evaluator(protocol, scores=scores)


@pytest.fixture(scope="module")
def main_protocol(tmp_path_factory: pytest.TempPathFactory) -> EvaluationProtocol:
    path = write_inception(tmp_path_factory.mktemp("inception") / "i.pt", seed=1)
    return clean256(InceptionFeatures.from_file(str(path)))


@pytest.mark.slow
@pytest.mark.parametrize("name", SCORES)
def test_a_score_equals_its_formula_and_no_other_preprocessing(
    name: str, sources: dict[str, str], main_protocol: EvaluationProtocol, tmp_path: Path
) -> None:
    shape = (310, 345) if name == "fid_patch" else (61, 90)
    images, real = photos(0, *shape), photos(1, *shape)
    if SCORES[name].compare:
        (tmp_path / "real").mkdir()
        for number, image in enumerate(real):
            picture = Image.fromarray(image.permute(1, 2, 0).numpy())
            picture.save(tmp_path / "real" / f"{number:02d}.png")
    folder = tmp_path / "real" if SCORES[name].compare else None
    evaluator = judge(name, sources[name], main_protocol, folder)

    def sample(texts: Any, seeds: Any) -> Tensor:
        return images[list(seeds)].float() / 127.5 - 1

    found = evaluator.of_sampler(sample, TEXTS, COUNT, COUNT, "cpu").values
    assert list(found) == [name]
    own = (name, sources[name], images, real)
    right = expected(*own)
    assert found[name] == pytest.approx(right, rel=1e-6)
    assert evaluator.key(name, 5000) == f"{name}_own_{SCORES[name].protocol}_5k"
    others: dict[str, dict[str, Any]] = {
        "crop": {"shift": 3},
        "normalisation": {"normalisation": ([0.5] * 3, [0.5] * 3)},
    }
    if name != "fid_patch":  # which does not resize
        others |= {"size": {"first": 30}, "interpolation": {"how": FILTER.BILINEAR}}
    for what, options in others.items():
        wrong = expected(*own, **options)
        assert abs(wrong - right) > 1e-4 * abs(right), what


def test_positions_are_interpolated_with_the_scale_of_dinov2s_code() -> None:
    """Compare with the bicubic kernel (a = -0.75), written out, at a scale of 16.1 to 5 patches."""
    positions = torch.randn(1, 26, 3, generator=torch.Generator().manual_seed(0))
    found = _interpolated(positions, 16)
    assert torch.equal(found[:, :1], positions[:, :1])
    assert torch.equal(_interpolated(found, 16), found)

    def kernel(x: float) -> float:
        x, a = abs(x), -0.75
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    weights = torch.zeros(16, 5, dtype=torch.float64)
    for row in range(16):
        centre = (row + 0.5) * 5 / 16.1 - 0.5
        for near in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            weights[row, min(max(near, 0), 4)] += kernel(centre - near)
    grid = positions[0, 1:].double().unflatten(0, (5, 5))
    whole = torch.einsum("ia,jb,abd->ijd", weights, weights, grid).flatten(0, 1)
    torch.testing.assert_close(found[0, 1:].double(), whole, atol=1e-5, rtol=1e-5)


def test_blocks_do_not_change_the_gaussian_distance() -> None:
    x, y = torch.randn(2, 40, 5, generator=torch.Generator().manual_seed(0)).double()
    whole = gaussian_distance(x, y, 10)
    for chunk in (1, 7, 40):
        torch.testing.assert_close(gaussian_distance(x, y, 10, chunk), whole, rtol=1e-9, atol=0)


def test_frechet_distances_keep_no_features() -> None:
    moments = Moments(4, keep=False)
    for _ in range(3):
        moments.update(torch.randn(5, 4))
    held = sum(value.numel() for value in moments.metric_state.values())
    assert held == 4 + 16 + 1
    assert moments.compute()[3].shape == (0, 4)


def test_the_teachers_images_are_the_reference_of_fid_teacher(
    main_protocol: EvaluationProtocol, tmp_path: Path
) -> None:
    for number, image in enumerate(photos(1, 40, 40)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{number:02d}.png")
    scores = load_scores({TEACHER: str(tmp_path)}, main_protocol, "scores")
    load_references(scores, None, "reference", "scores")
    evaluator = Evaluator(main_protocol, reference=scores[0].reference, scores=scores)
    images = photos(0, 40, 40).float() / 127.5 - 1
    found = evaluator.of_sampler(lambda _, seeds: images[list(seeds)], ["a"], COUNT, 7, "cpu")
    assert found.values[TEACHER] == pytest.approx(found.values["fid"], rel=1e-9)
    assert evaluator.key(TEACHER, 5000) == "fid_teacher_clean256_5k"


def test_images_without_a_whole_patch_warn(
    sources: dict[str, str], main_protocol: EvaluationProtocol, tmp_path: Path
) -> None:
    for number, image in enumerate(photos(1, 40, 40)[:3]):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
    evaluator = judge("fid_patch", sources["fid_patch"], main_protocol, tmp_path)
    with pytest.warns(UserWarning, match="fid_patch is of the centres .* than 299 pixels"):
        evaluator.of_folder(sorted(tmp_path.iterdir()), None, 3, "cpu", "images")


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (["fid_patches"], "there is no score 'fid_patches'. Choose among cmmd, fd_dinov2"),
        ([TEACHER], "fid_teacher needs the teacher's images"),
        ({"cmmd": "./nothing"}, r"--scores.cmmd: could not load a CLIP model .*no folder"),
        ({"cmmd": "nobody/nothing@abc"}, "--scores.cmmd: .*HF_HUB_OFFLINE is set"),
        ({"cmmd": "DINO"}, "--scores.cmmd: .*is of a dinov2, not of a clip"),
        ({"fd_dinov2": "CLIP"}, "--scores.fd_dinov2: .*is of a clip, not of a dinov2"),
        ({"pickscore": "BIN"}, "--scores.pickscore: .*only there as pytorch_model.bin"),
        ({"aesthetic": "CLIP"}, "--scores.aesthetic: could not load an aesthetic predictor"),
        ({"aesthetic": "HEADLESS"}, "--scores.aesthetic: .*lack layers.7.weight"),
        ({"fid_patch": "CLIP"}, "--scores.fid_patch: .*is not the TorchScript Inception"),
    ],
)
def test_a_missing_or_wrong_network_ends_in_one_message(
    asked: Any,
    found: str,
    sources: dict[str, str],
    main_protocol: EvaluationProtocol,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    places = {"DINO": sources["fd_dinov2"], "CLIP": sources["cmmd"]}
    if "BIN" in str(asked):
        folder = shutil.copytree(sources["cmmd"], tmp_path / "bin")
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        places["BIN"] = str(folder)
    if "HEADLESS" in str(asked):
        from safetensors.torch import load_file, save_file

        folder = shutil.copytree(sources["aesthetic"], tmp_path / "headless")
        weights = load_file(folder / "model.safetensors")
        del weights["layers.7.weight"]
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        places["HEADLESS"] = str(folder)
    if isinstance(asked, dict):
        asked = {name: places.get(source, source) for name, source in asked.items()}
    with pytest.raises(UsageError) as caught:
        load_scores(asked, main_protocol, "scores")
    assert re.search(found, str(caught.value)), caught.value
    assert "\n" not in str(caught.value)


def test_missing_captions_and_references_are_named(
    sources: dict[str, str], main_protocol: EvaluationProtocol, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="--scores: pickscore needs captions"):
        check_inputs(["cmmd", "pickscore"], None, "scores")
    with pytest.raises(UsageError, match="--scores: diversity compares images of one prompt"):
        check_inputs(["diversity"], ["a", "b"], "scores")
    (tmp_path / "teacher").mkdir()
    asked = {"diversity": None, TEACHER: str(tmp_path / "teacher")}
    check_inputs(asked, ["a", "a"], "scores")  # images of unknown prompts
    (tmp_path / "teacher" / "metadata.jsonl").write_text('{"text": "a"}\n{"text": "a"}\n')
    check_inputs(asked, ["a", "a"], "scores")
    with pytest.raises(UsageError, match="--scores.fid_teacher: .* 1 of 3 are missing, .*'b'"):
        check_inputs(asked, ["a", "a", "b"], "scores")
    with pytest.warns(UserWarning, match="compare with no published ones"):
        scores = load_scores({"cmmd": sources["cmmd"]}, main_protocol, "scores")
    with pytest.raises(UsageError, match="--scores: cmmd compares with .*Give --reference"):
        load_references(scores, None, "reference", "scores")
    (tmp_path / stored_name("clean256")).touch()
    with pytest.raises(UsageError, match=r"no reference-own_clip336\.safetensors"):
        load_references(scores, str(tmp_path), "reference", "scores")


def test_studies_know_the_names_of_all_scores() -> None:
    assert {*PUBLISHED_SCORES} == {*SCORES, TEACHER}
