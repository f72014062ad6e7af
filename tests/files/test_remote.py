"""Paths on other machines are refused in every option that takes a path."""

from pathlib import Path

import pytest

from sid_lsg.cli import main
from sid_lsg.files.remote import check_options, is_remote
from sid_lsg.messages.errors import UsageError


@pytest.mark.parametrize(
    "path", ["s3://bucket/run", "gs://b", "file:///tmp/x", "https://huggingface.co/a/b", "s3:/b/x"]
)
def test_urls_are_remote(path: str) -> None:
    assert is_remote(path)


@pytest.mark.parametrize(
    "path", ["runs/x", "/runs/a:b/c", "package:demo/fashion", "architecture:sd15", "~/x", "owner/n",
             "a photo of http://x", "C:/x", "16:9", ""]
)  # fmt: skip
def test_paths_and_names_are_not_remote(path: str) -> None:
    assert not is_remote(path)


def test_texts_and_addresses_are_allowed() -> None:
    logger = {"class_path": "MLFlowLogger", "init_args": {"tracking_uri": "http://host:5000"}}
    check_options(
        {
            "metrics": {"clip_prefix": "http://x", "num_images": 3},
            "image_grid": {"prompts": ["http://x"]},
            "trainer": {"logger": logger, "callbacks": None},
            "name": "http://x",
        }
    )


@pytest.mark.parametrize(
    "options",
    [
        {"data": {"prompts": ["p.txt", "s3://b/p.txt"]}},
        {"options": {"data.prompts": "s3://b/p.txt"}},
        {"trainer": {"logger": [{"init_args": {"save_dir": "s3://b/logs"}}]}},
        {"trainer": {"callbacks": [{"init_args": {"dirpath": Path("s3://b/x")}}]}},
    ],
)
def test_paths_in_sections_and_lists_are_found(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"^--[\w.]+: 's3:/.* is a URL, but files are read and"):
        check_options(options)


FIT = ("fit", "--model.teacher=x", "--data.prompts=p.txt")


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ((*FIT, "--trainer.default_root_dir=s3://b/run"), "trainer.default_root_dir"),
        ((*FIT, "--ckpt_path=s3://b/run/last.ckpt"), "ckpt_path"),
        ((*FIT, "--model.init.generator=gs://b/g"), "model.init.generator"),
        ((*FIT, "--metrics.reference=https://x.org/r.npz"), "metrics.reference"),
        ((*FIT, "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=s3://b/x"),
         "trainer.logger.save_dir"),
        (("fit", "--model.teacher=https://huggingface.co/a/b"), "model.teacher"),
        (("fit", "--config=s3://b/c.yaml"), "config"),
        (("generate", "--model=x", "--prompt=a", "--output=s3://b/images"), "output"),
        (("generate", "--model=hf://a/b", "--prompt=a"), "model"),
        (("evaluate", "--images=gs://b/x"), "images"),
        (("evaluate", "--model=x", "--prompts=p.txt", "--compare=[a,s3://b/r]"), "compare"),
        (("export", "--ckpt_path=s3://b/last.ckpt", "--output=x"), "ckpt_path"),
        (("consolidate", "--ckpt_path=x", "--output=s3://b/x.ckpt"), "output"),
        (("prepare-coco", "--annotations=http://x/a.json"), "annotations"),
        (("import-official", "--checkpoint=s3://b/x.pkl", "--base=a/b", "--output=x"),
         "checkpoint"),
        (("app", "--model=s3://b/x"), "model"),
        (("study", "--output=s3://b/x"), "output"),
        (("estimate", "--model.teacher=x", "--data.prompts=p", "--estimate.output=s3://b/x"),
         "estimate.output"),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_commands_refuse_urls(
    line: tuple[str, ...],
    option: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main([*line])
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert said.startswith(f"error: --{option}: ")
    assert "is a URL" in said
    assert "local path." in said
    assert not [*tmp_path.iterdir()]
