"""Load files of a folder or of the Hub."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from sid_lsg.files.loading import load_network, read_json
from sid_lsg.files.sources import locate
from sid_lsg.files.weight_files import Unusable


def test_a_json_file_of_a_folder_is_read(tmp_path: Path) -> None:
    folder = locate(str(tmp_path))
    assert read_json(folder, "a/b.json") is None
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.json").write_text('{"x": "ü"}', encoding="utf-8")
    assert read_json(folder, "a/b.json") == {"x": "ü"}
    for content in ("", "{", "[1]", "3"):
        (tmp_path / "a" / "b.json").write_text(content)
        with pytest.raises(ValueError, match="JSON|Expecting"):
            read_json(folder, "a/b.json")


def test_a_json_file_of_the_hub_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "found.json").write_text("{}")

    def fetch(name: str, file: str, revision: str | None) -> str:
        if file == "none.json":
            raise OSError("offline")
        assert (name, file, revision) == ("owner/name", "found.json", "v1")
        return str(tmp_path / file)

    monkeypatch.setattr("sid_lsg.files.loading.hf_hub_download", fetch)
    assert read_json(locate("owner/name"), "found.json", "v1") == {}
    assert read_json(locate("owner/name"), "none.json", "v1") is None


@pytest.mark.parametrize("kind", [UNet2DConditionModel, AutoencoderKL])
def test_a_network_is_loaded_without_random_weights(kind: type, tiny_sd: str) -> None:
    """Random weights take 7 seconds of a Stable Diffusion 1.5, and the file's replace them."""
    part = {UNet2DConditionModel: "unet", AutoencoderKL: "vae"}[kind]
    options = {"low_cpu_mem_usage": False, "torch_dtype": torch.float32}
    before = torch.get_rng_state()
    found = load_network(kind, tiny_sd, subfolder=part, **options)
    with pytest.raises(Unusable):
        load_network(kind, tiny_sd, subfolder="nothing", **options)
    assert torch.equal(torch.get_rng_state(), before)
    usual = kind.from_pretrained(tiny_sd, subfolder=part, **options)  # type: ignore[attr-defined]
    for (name, ours), theirs in zip(
        found.state_dict().items(), usual.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert nn.Linear(3, 3).weight.std() > 0.1  # layers draw their weights again
        assert not torch.equal(torch.get_rng_state(), before)
