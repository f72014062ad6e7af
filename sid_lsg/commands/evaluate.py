"""`evaluate`: score a model or a folder of images, and write a report."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sid_lsg.commands.evaluate_export import export_images
from sid_lsg.files.replacing import check_writable, text_hash, writing
from sid_lsg.messages.checks import refuse
from sid_lsg.messages.errors import UsageError
from sid_lsg.options.choices import (
    PAPER_CLIP,
    PAPER_PREFIX,
    BenchmarkName,
    Precision,
    ProtocolName,
    SamplerName,
    Scores,
)

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from sid_lsg.generation.folder import ImageFolder
    from sid_lsg.generation.image_files import ImageRequest
    from sid_lsg.generation.models import ImageModel


def evaluate(
    model: str | None = None,
    prompts: str | list[str] | None = None,
    images: str | None = None,
    captions: str | None = None,
    column: str | None = None,
    reference: str | None = None,
    protocol: ProtocolName = "clean256",
    num_images: int | None = None,
    output: str = "report",
    sampler: SamplerName = "auto",
    num_steps: int | None = None,
    guidance: float | None = None,
    resolution: int | None = None,
    dtype: Precision = "float32",
    batch_size: int = 50,
    inception: str | None = None,
    clip: str | None = PAPER_CLIP,
    clip_prefix: str = PAPER_PREFIX,
    scores: Scores = [],  # noqa: B006 (read only; what --help shows)
    compare: str | list[str] = [],  # noqa: B006 (read only; what --help shows)
    name: str | None = None,
    export: BenchmarkName | None = None,
    accelerator: str = "auto",
    devices: int = 1,
    num_nodes: int = 1,
    progress: bool = True,
) -> None:
    """Score a model, or any folder of images, and write a report.

    Writes report.json, .md, .csv and .html, the scores of each image (images.csv), samples.png and
    (with a reference) alignment.png to the output folder, and a model's images to its images/. The
    same command continues after an interruption.

    Args:
        model: The model to sample: an exported folder, any diffusers folder, or a Hub id.
        prompts: Files of prompts to sample, as for `fit`. Image i has prompt i (modulo their
            number, not counting blank lines) and seed i.
        images: A folder of images to score, from any method, instead of a model. As in the
            published protocols, only the pixels count: EXIF orientation, colour profile and
            transparency are ignored. Hidden files are left out.
        captions: Captions of --images, for the scores that need them: a table (.jsonl, .csv, .tsv,
            .parquet) with a column that names the files, such as `file_name`, in any order; or a
            .txt file with one caption per line, in the order of the file names.
        column: Column of the prompts or captions in .jsonl, .csv, .tsv and .parquet files.
        reference: Reference images: a folder, whose statistics are computed once and cached, or a
            file of statistics, or a folder of such files that prepare-coco wrote. Without it, FID
            and the other scores of features are left out.
        protocol: Features of the images. `clean256`: the paper's protocol (Pillow LANCZOS to 256,
            bicubic to 299 in float, Inception). `clip`: image embeddings of the model in --clip.
            `fast`: the same with faster resizing, and fewer images.
        num_images: Number of images; by default the protocol's: 30,000 for clean256, 10,000 for
            clip, 1,000 for fast. It is part of the scores' names: compare only equal numbers.
        output: Folder of the report.
        sampler: `generator`: as in training. `ddim`: a teacher, as in the training's final
            comparison. `pipeline`: the diffusers pipeline and scheduler of the model. `auto`:
            `generator` for generators of this project, otherwise `pipeline`.
        num_steps: Sampling steps; by default those of the training for a generator of this project,
            required for other models.
        guidance: Guidance scale; required for models that are not generators of this project. 0 and
            1 mean no guidance; `ddim` accepts no value between them.
        resolution: Side of the images in pixels; by default the model's.
        dtype: Precision of the sampled networks. Features are always computed in float32.
        batch_size: Images per batch.
        inception: TorchScript file of Inception for clean256; by default downloaded once and
            verified.
        clip: CLIP model of the CLIP score and of the protocols `clip` and `fast`: a folder, a Hub
            id, which may end with @ and a revision, or package:demo/fashion/clip; null leaves the
            score out.
        clip_prefix: Text before each prompt in the CLIP score.
        scores: Published scores: cmmd, fd_dinov2, fid_clean, fid_patch, fid_teacher, diversity,
            pickscore, hpsv2, aesthetic, image_reward. A list takes the published networks;
            {NAME: SOURCE} names a folder or a Hub id, with @ and a revision, for each. The source
            of fid_teacher is a folder of the teacher's images of the same prompts.
        compare: Folder or folders of other reports to add to the tables and the page. Without
            --model and --images, only these are compared.
        name: Name of the images in the table; by default the name of the model or folder.
        export: Write the images of a benchmark's own --prompts as its official scorer reads them,
            and compute no scores: `geneval`, `dpg`, `hpsv2` or `t2i-compbench`. The images go to
            images/, and the scorer's folder beside it has the benchmark's name.
        accelerator: auto, cpu, gpu, ...
        devices: Number of devices per machine, which share the images.
        num_nodes: Number of machines.
        progress: Show progress bars.

    Raises:
        UsageError: If the options do not go together, or a model or file cannot be used.
    """
    if export:
        export_images(evaluate, locals())
        return
    if compare and not (model or images or prompts):
        _compare(compare, output)
        return
    _check(model, prompts, images, num_images, batch_size)
    sampling = {"num_steps": num_steps, "guidance": guidance, "resolution": resolution}
    for_model = {option: value is not None for option, value in sampling.items()}
    for_model |= {"sampler": sampler != "auto", "dtype": dtype != "float32"}
    _check_used("model", model, for_model)
    _check_used("images", images, {"captions": captions})
    _check_used("captions", model or captions, {"column": column})
    from sid_lsg.distributed.processes import check_enough, launch
    from sid_lsg.generation.folder import ImageFolder
    from sid_lsg.generation.models import check_settings, load_model
    from sid_lsg.metrics.compared import IMAGES
    from sid_lsg.metrics.evaluator import Evaluator
    from sid_lsg.metrics.features import CLIPFeatures
    from sid_lsg.metrics.kept_scores import SECONDS, keep, sampled, scored
    from sid_lsg.metrics.loaded import check_inputs, load_scores
    from sid_lsg.metrics.protocol import load_protocol
    from sid_lsg.metrics.reference import load_reference, load_references
    from sid_lsg.metrics.report import (
        check_comparable,
        check_free_of_others,
        read_report,
        scored_by,
        write_report,
    )

    check_settings(sampler, num_steps, guidance)
    root = Path(output).expanduser()
    check_free_of_others(root)
    if images and Path(images).expanduser().resolve() == root.resolve():
        raise UsageError(f"--output: {output!r} is the folder of --images. Choose another folder.")
    check_writable(root, "output")
    others = [read_report(folder) for folder in _listed(compare)]
    texts = _prompts(prompts, column) if prompts else None
    given = _given(images, captions, column) if images else None
    fabric = launch(accelerator, devices, num_nodes)
    show = fabric.is_global_zero and progress

    clip_model = CLIPFeatures.from_pretrained(clip) if clip else None
    chain = load_protocol(protocol, clip_model, inception)
    count = num_images or chain.num_images
    check_enough(count, "num_images")
    if given and len(given.paths) < count:
        asked = "" if num_images else f" by the protocol {protocol}"
        raise UsageError(
            f"--images: {images!r} contains {len(given.paths)} images, but {count} are "
            f"needed{asked}. Add images, or give --num_images {len(given.paths)}, which becomes "
            "part of the scores' names."
        )
    subject = given.first(count) if given else None
    captioned = subject.captions if subject else _repeated(texts or [], count)
    check_inputs(scores, captioned, "scores")
    published = load_scores(scores, chain, "scores", inception)
    real = None
    if reference:
        bar = "reference" if show else None
        real = load_reference(reference, chain, "reference", batch_size, fabric.device, bar)
    load_references(published, reference, "reference", "scores", batch_size, fabric.device)

    evaluator = Evaluator(chain, clip_model, clip_prefix, real, published)
    teacher: dict[str, Any] | None = None
    about = {
        "name": name or Path(model or images or "").name,
        "num_images": count,
        "prompts_sha256": text_hash(captioned) if captioned else None,
    }
    for other in others:  # before the work
        check_comparable(about | scored_by(evaluator), other.content)
    if subject is None:
        assert model
        assert texts
        folder = ImageFolder(root / IMAGES, _requests(texts, count))
        source = load_model(model, sampler, num_steps, guidance, resolution, dtype, fabric.device)
        subject = _sample(source, texts, folder, batch_size, fabric, show)
        if source.identity and fabric.is_global_zero:
            precision = "32-true" if dtype == "float32" else dtype
            teacher = sampled(
                source.identity(captioned or []), captioned or [], source.about["num_steps"],
                source.about["guidance"], fabric.device, precision,
            )  # fmt: skip
        del source  # free its memory for the features
    found = evaluator.of_folder(
        subject.paths,
        subject.captions,
        batch_size,
        fabric.device,
        "images" if images else "output",
        "scores" if show else None,
    )
    if teacher:  # for the runs that compare their generator with it
        seconds = subject.about["seconds_per_image"] or math.nan
        keep(scored(teacher, evaluator), found.values | {SECONDS: seconds})
    if fabric.is_global_zero:
        facts = subject.about | about
        with writing(root, "output"):
            write_report(root, evaluator, found, subject.paths, subject.captions, facts, others)


class Subject(NamedTuple):
    """The images to score, their captions, and their origin."""

    paths: list[Path]
    captions: list[str] | None
    about: dict[str, Any]

    def first(self, count: int) -> "Subject":
        """Return the first `count` images."""
        return Subject(self.paths[:count], self.captions and self.captions[:count], self.about)


def _compare(compare: str | list[str], output: str) -> None:
    """Write the tables and the page of earlier reports."""
    from sid_lsg.metrics.report import (
        check_comparable,
        check_free_of_others,
        read_report,
        write_comparison,
    )

    root = Path(output).expanduser()
    check_free_of_others(root)
    results = [read_report(folder) for folder in _listed(compare)]
    for other in results[1:]:
        check_comparable(results[0].content, other.content)
    check_writable(root, "output")
    with writing(root, "output"):
        write_comparison(root, results)


def _listed(compare: str | list[str]) -> list[str]:
    return [compare] if isinstance(compare, str) else compare


def _check(
    model: str | None,
    prompts: str | list[str] | None,
    images: str | None,
    num_images: int | None,
    batch_size: int,
) -> None:
    if (model is None) == (images is None):
        raise UsageError(
            "Give either --model (with --prompts) to score a model, or --images to score a folder."
        )
    if model and not prompts:
        raise UsageError("--prompts is missing: give a file with one prompt per line.")
    if images and prompts:
        raise UsageError("--prompts is for --model; the captions of --images are --captions.")
    if num_images is not None and num_images < 2:
        refuse("num_images", num_images, "at least 2")
    if batch_size < 1:
        refuse("batch_size", batch_size, "at least 1")


def _check_used(user: str, value: str | None, options: Mapping[str, object]) -> None:
    """Reject options that need another option which is not given."""
    for name, given in options.items():
        if given and not value:
            raise UsageError(f"--{name} needs --{user}, which is not given. Leave --{name} out.")


def _prompts(prompts: str | list[str], column: str | None) -> Sequence[str]:
    from sid_lsg.data.corpus import find_files, read_corpus

    return read_corpus(find_files(prompts, "--prompts"), column, "--prompts")


def _repeated(prompts: Sequence[str], count: int) -> list[str]:
    """Return the prompts of `count` images, repeated if there are fewer."""
    return [prompts[i % len(prompts)] for i in range(count)]


def _given(images: str, captions: str | None, column: str | None) -> Subject:
    """List the images of a folder, with captions if there are any."""
    from sid_lsg.data.captions import read_captions
    from sid_lsg.images.folder import list_images

    root = Path(images).expanduser()
    paths = list_images(root, "images")
    texts = read_captions(captions, column, paths, root) if captions else None
    return Subject(paths, texts, {"images": images})


def _requests(prompts: Sequence[str], count: int) -> "list[ImageRequest]":
    """List the images to sample: image i has prompt i (modulo their number) and seed i."""
    from sid_lsg.generation.image_files import ImageRequest

    texts = _repeated(prompts, count)
    return [ImageRequest(f"{i:07d}.png", text, i) for i, text in enumerate(texts)]


def _sample(
    source: "ImageModel",
    prompts: Sequence[str],
    folder: "ImageFolder",
    batch_size: int,
    fabric: "Fabric",
    show: bool,
) -> Subject:
    """Sample the images that are missing in the folder."""
    rule = f"image i: prompt i modulo {len(prompts)}, seed i"
    settings = {"seeds": rule, "prompts_sha256": text_hash(prompts)}
    made = folder.write(source, settings, batch_size, fabric, progress="images" if show else None)
    about = {
        **source.about,
        **settings,
        "images": str(folder.root),
        "evaluations_per_image": source.evaluations,
        "seconds_per_image": made.seconds_per_image,
    }
    return Subject(made.paths, [request.prompt for request in folder.requests], about)
