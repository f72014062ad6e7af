"""`prepare-coco`: create the paper's evaluation set from COCO's files."""

import json
from pathlib import Path
from typing import Any, Literal

from sid_lsg.files.replacing import check_writable, replacing, writing
from sid_lsg.messages.checks import refuse
from sid_lsg.messages.errors import UsageError
from sid_lsg.options.choices import ProtocolName, Scores

_GIVE = "Give captions_val2014.json from COCO's annotations_trainval2014.zip."


def prepare_coco(
    annotations: str,
    images: str | None = None,
    output: str = "coco",
    num_prompts: int = 30_000,
    seed: int = 0,
    captions: Literal["drawn", "official"] = "drawn",
    protocol: ProtocolName = "clean256",
    inception: str | None = None,
    clip: str | None = None,
    scores: Scores = [],  # noqa: B006 (read only; what --help shows)
    batch_size: int = 50,
    accelerator: str = "auto",
    progress: bool = True,
) -> None:
    """Create the caption list and the reference statistics of COCO.

    Writes captions.jsonl (file name and one caption of every image), prompts.txt (`num_prompts` of
    these captions, to sample) and reference-PROTOCOL.safetensors for the protocol and each score.

    Args:
        annotations: The file captions_val2014.json.
        images: The folder val2014/. By default no statistics are computed.
        output: Folder to write to.
        num_prompts: Number of captions in prompts.txt; 30,000 in the paper.
        seed: Seed for the choice of images and captions.
        captions: `drawn`: one of each image's captions, at random. `official`: the list of the
            official code of SiD-LSG and SiD-DiT, without --seed: each image's last caption, in
            lower case and in the order of that code's sampler.
        protocol: Features of the images, as for `evaluate`.
        inception: TorchScript file of Inception for clean256; by default downloaded once and
            verified.
        clip: CLIP model of the protocols `clip` and `fast`.
        scores: Published scores that compare with reference images, as for `evaluate`.
        batch_size: Images per batch.
        accelerator: auto, cpu, gpu, ...
        progress: Show a progress bar.

    Raises:
        UsageError: If the annotations are not COCO's, or images are missing or cannot be read.
    """
    import torch

    from sid_lsg.distributed.processes import launch
    from sid_lsg.method.randomness import permute
    from sid_lsg.metrics.features import CLIPFeatures
    from sid_lsg.metrics.loaded import load_scores
    from sid_lsg.metrics.protocol import load_protocol
    from sid_lsg.metrics.reference import compute_statistics, stored_name

    if batch_size < 1:
        refuse("batch_size", batch_size, "at least 1")
    official = captions == "official"
    chosen = _captions(annotations, None if official else seed)
    if num_prompts > len(chosen) or num_prompts < 1:
        raise UsageError(
            f"--num_prompts: {num_prompts}, but there are {len(chosen)} images with captions. Give "
            f"1 to {len(chosen)}."
        )
    files = _files(images, chosen) if images else []
    device = launch(accelerator, devices=1).device
    network = CLIPFeatures.from_pretrained(clip) if clip and images else None
    chains = [load_protocol(protocol, network, inception)] if images else []
    if images:
        published = load_scores(scores, chains[0], "scores", inception)
        chains += {id(one.chain): one.chain for one in published if one.about.compare}.values()
    root = Path(output).expanduser()
    check_writable(root, "output")
    if official:
        order = official_order(len(chosen), num_prompts)
    else:
        order = permute(torch.arange(num_prompts), len(chosen), seed, 0).tolist()
    names = list(chosen)
    with writing(root, "output"):
        with (
            replacing(root / "captions.jsonl") as temporary,
            temporary.open("w", encoding="utf-8") as file,
        ):
            for name, caption in chosen.items():
                row = {"file_name": name, "caption": caption}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        with replacing(root / "prompts.txt") as temporary:
            text = "".join(f"{chosen[names[place]]}\n" for place in order)
            temporary.write_text(text, encoding="utf-8")
    print(f"{len(chosen)} captions; {num_prompts} of them are in {root / 'prompts.txt'}")
    for chain in chains:
        bar = f"reference, {chain.name}" if progress else None
        statistics = compute_statistics(files, chain, "images", batch_size, device, bar)
        statistics.about["source"] = f"{len(files)} images of {Path(annotations).name}"
        path = root / stored_name(chain.name)
        with writing(root, "output"):
            statistics.save(path)
        print(f"Reference statistics of {len(files)} images: {path}")


def official_order(images: int, count: int) -> list[int]:
    """Return the places of the first `count` images that the official code samples.

    Its sampler reads a permutation by NumPy's legacy generator with seed 0. After each step, the
    place that was read is exchanged with a random one of the half of all places that end with it.
    So the first half has no image twice; places are sorted by file name.
    """
    import numpy as np

    draw = np.random.RandomState(0)
    order, half = draw.permutation(images), round(images / 2)
    found = []
    for step in range(count):
        place = step % images
        found.append(int(order[place]))
        if half > 1:
            other = (place - draw.randint(half)) % images
            order[place], order[other] = order[other], order[place]
    return found


def _captions(annotations: str, seed: int | None) -> dict[str, str]:
    """Choose one caption per image; return file name to caption, sorted by name.

    Without a seed, choose the last in the file, in lower case.
    """
    import torch

    try:
        content = json.loads(Path(annotations).expanduser().read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--annotations: cannot read {annotations!r} ({error}). {_GIVE}"
        ) from error
    images = _entries(content, "images", {"id": int, "file_name": str}, annotations)
    names = {image["id"]: image["file_name"] for image in images}
    if len(names) < len(images):
        raise UsageError(
            f"--annotations: {annotations!r} gives {len(images) - len(names)} images the id of "
            f"another one. {_GIVE}"
        )
    captions: dict[str, list[str]] = {}
    needed = {"id": int, "image_id": int, "caption": str}
    entries = _entries(content, "annotations", needed, annotations)
    for entry in entries if seed is None else sorted(entries, key=lambda entry: entry["id"]):
        if entry["image_id"] not in names:
            raise UsageError(
                f"--annotations: the annotation with id {entry['id']} in {annotations!r} is of "
                f"image {entry['image_id']}, which is not in its list of images. {_GIVE}"
            )
        text = " ".join(entry["caption"].split())
        captions.setdefault(names[entry["image_id"]], []).append(text)
    generator = torch.Generator().manual_seed(seed or 0)
    chosen = {}
    for name in sorted(captions):
        texts = [text for text in captions[name] if text]
        if texts and seed is None:
            chosen[name] = texts[-1].lower()
        elif texts:
            place = torch.randint(len(texts), (), generator=generator)
            chosen[name] = texts[int(place)]
    return chosen


def _entries(
    content: Any, name: str, needed: dict[str, type], annotations: str
) -> list[dict[str, Any]]:
    """Return a list of COCO's annotations file; check the fields of its entries."""
    entries = content.get(name) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise UsageError(
            f"--annotations: {annotations!r} is not a COCO caption file: it has no list "
            f"{name!r}. {_GIVE}"
        )
    for number, entry in enumerate(entries, 1):
        found = entry if isinstance(entry, dict) else {}
        for field, kind in needed.items():
            value = found.get(field)
            if not isinstance(value, kind) or isinstance(value, bool):
                what = f"is {value!r:.60}" if field in found else "is missing"
                which = f" (id {found['id']!r})" if "id" in found and field != "id" else ""
                raise UsageError(
                    f"--annotations: entry {number}{which} of {name!r} in {annotations!r} is not "
                    f"COCO's: its {field} {what}. Correct or remove the entry."
                )
    return entries


def _files(images: str, chosen: dict[str, str]) -> list[Path]:
    from sid_lsg.distributed.processes import check_enough

    root = Path(images).expanduser()
    files = [root / name for name in chosen]
    if lacking := [file.name for file in files if not file.is_file()]:
        raise UsageError(
            f"--images: {images!r} lacks {len(lacking)} of {len(files)} images, the first of them "
            f"{lacking[0]!r}. Unpack all of COCO's val2014.zip."
        )
    check_enough(len(files), "images")
    return files
