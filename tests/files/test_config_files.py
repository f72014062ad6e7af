"""Check the files of --config before a parser reads them."""

from pathlib import Path

import pytest

from sid_lsg.files.config_files import check_config_files
from sid_lsg.messages.errors import UsageError


def arguments(path: Path | str, together: bool) -> list[str]:
    option = [f"--config={path}"] if together else ["--config", str(path)]
    return ["fit", *option, "--data.prompts", "p.txt"]


@pytest.mark.parametrize("together", [False, True], ids=["--config F", "--config=F"])
@pytest.mark.parametrize("content", [b"a: [1", b"caf\xe9: 1", None])
def test_an_unreadable_config_is_rejected(
    tmp_path: Path, content: bytes | None, together: bool
) -> None:
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_bytes(content)
    good = tmp_path / "good.yaml"
    good.write_text("seed_everything: 1\n")
    with pytest.raises(UsageError, match=r"^--config: .*run\.yaml'"):
        check_config_files([*arguments(good, together), *arguments(path, together)])


def test_readable_configs_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: {alpha: 1.0}\n")
    check_config_files(arguments(path, together=False))
    check_config_files(arguments(path, together=True))
    check_config_files(["fit", "--data.prompts", "no/such.yaml"])


def test_a_shipped_config_is_found_from_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_config_files(arguments("package:configs/demo.yaml", together=False))
    with pytest.raises(UsageError, match=r"cannot read 'package:configs/none\.yaml'"):
        check_config_files(arguments("package:configs/none.yaml", together=True))


@pytest.mark.parametrize(
    ("text", "found"),
    [("", "is empty"), ("# nothing\n", "is empty"), ("- a\n", "contains no options"),
     ("just words", "contains no options")],
)  # fmt: skip
def test_a_file_without_options_is_named(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=rf"^--config: '.*x\.yaml' {found}\. Give a YAML file of"):
        check_config_files(["fit", "--config", str(path)])
