"""Options and fixtures shared by all tests.

The process that hands out tests to the workers imports this too, before it starts them: so it
imports no large library itself.
"""

import gc
import os
import shutil
import signal
import sys
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.helpers.paths import GOLDEN, GOLDEN_FLOW

# These files take longest, in this order. They run first, so that none is left for the end, when
# one process would work and the others wait.
FIRST = (
    "test_strategies", "test_soak", "test_families_end_to_end", "test_wrong_models", "test_health",
    "test_health_actions", "test_interruption_runs", "test_interruption_together",
    "test_benchmark", "test_graph", "test_configs", "test_evaluate", "test_memory", "test_start",
    "test_settings",
)  # fmt: skip

# How long an example takes depends on what else the machine does.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=Path,
        default=GOLDEN,
        help="folder with the official code's numbers (index.json, case_*, traj*)",
    )
    parser.addoption(
        "--golden-flow",
        type=Path,
        default=GOLDEN_FLOW,
        help="the same for flow-matching teachers (index.json, sd3_case_*, ...)",
    )


def pytest_configure() -> None:
    # A shell's background jobs ignore Ctrl-C, and those of nohup SIGHUP: so would every process
    # that a test starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    place = {name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(FIRST)))
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    # Exclude the imported objects from garbage collection, and collect less often: it then takes a
    # fraction of its time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)
    # Lightning reads the metadata of all installed packages for each Trainer.
    if registry := sys.modules.get("lightning.fabric.utilities.registry"):
        registry.entry_points = cache(registry.entry_points)


@pytest.fixture(scope="session", autouse=True)
def kept_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep the teachers' scores and other cached files in one folder for the whole test run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cached"
    os.environ["SID_LSG_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_sd() -> str:
    """Return the folder of a Stable Diffusion with 200 thousand parameters."""
    return str(GOLDEN / "tiny_sd")


@pytest.fixture(scope="session")
def small_sd(tiny_sd: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a Stable Diffusion with a one-level UNet: half the iteration time."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    folder = tmp_path_factory.mktemp("small_sd") / "small_sd"
    shutil.copytree(tiny_sd, folder, ignore=shutil.ignore_patterns("unet", "vae"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            layers_per_block=1,
            block_out_channels=(8,),
            down_block_types=("CrossAttnDownBlock2D",),
            mid_block_type=None,
            up_block_types=("CrossAttnUpBlock2D",),
            cross_attention_dim=32,
            attention_head_dim=2,
            norm_num_groups=4,
        )
        vae = AutoencoderKL(
            block_out_channels=(8,) * 4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            norm_num_groups=4,
        )
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    return str(folder)
