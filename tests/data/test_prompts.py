"""The order of prompts depends only on the seed and the iteration."""

import logging
import warnings
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from sid_lsg.data.prompts import PromptBatch, PromptDataModule, PromptDataset
from sid_lsg.messages.errors import UsageError
from sid_lsg.teachers.stable_diffusion import StableDiffusion


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(f"prompt {n}" for n in range(10)))
    return str(path)


def ready(prompts: str | list[str], trainer: Any = None, **options: Any) -> PromptDataModule:
    """Return a data module after `setup`, attached to a trainer if one is given."""
    data = PromptDataModule(prompts, **{"batch_size": 4, "num_workers": 0} | options)
    data.trainer = trainer
    data.setup()
    return data


def at(step: int = 0, steps: int = -1, rank: int = 0, world: int = 1) -> SimpleNamespace:
    """Return the parts of a Trainer that the data module uses."""
    return SimpleNamespace(global_step=step, max_steps=steps, global_rank=rank, world_size=world)


def batches(data: PromptDataModule, count: int | None = None) -> list[PromptBatch]:
    return list(islice(data.train_dataloader(), count))


def test_a_batch_contains_both_phases_and_its_position(prompts: str) -> None:
    (batch,) = batches(ready(prompts), 1)
    assert isinstance(batch, PromptBatch)
    assert (batch.iteration, batch.position) == (0, 0)
    assert len(batch.fake) == len(batch.generator) == 4
    assert set(batch.fake).isdisjoint(batch.generator)  # 8 of 10 prompts, all different


@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 30), batch_size=st.integers(2, 12), seed=st.integers(0, 2**40))
def test_every_prompt_is_drawn_once_per_epoch(size: int, batch_size: int, seed: int) -> None:
    dataset = PromptDataset([str(n) for n in range(size)], batch_size, seed)
    draws: list[str] = []
    for iteration in range(3 * size // (2 * batch_size) + 1):
        draws += dataset[iteration].fake + dataset[iteration].generator
    for start in range(0, len(draws) - size + 1, size):
        assert sorted(draws[start : start + size]) == sorted(dataset.prompts)


def test_epochs_and_seeds_have_different_orders() -> None:
    names = [str(n) for n in range(50)]
    first, second = PromptDataset(names, 25, seed=0)[0], PromptDataset(names, 25, seed=0)[1]
    other = PromptDataset(names, 25, seed=1)[0]
    orders = [batch.fake + batch.generator for batch in (first, second, other)]
    assert all(sorted(order) == sorted(names) for order in orders)
    assert len({tuple(order) for order in [names, *orders]}) == 4


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_order(prompts: str, workers: int) -> None:
    trainer = at(step=3, steps=9)
    expected = batches(ready(prompts, trainer))
    assert [batch.iteration for batch in expected] == list(range(3, 9))
    assert batches(ready(prompts, trainer, num_workers=workers)) == expected


@pytest.mark.slow
def test_spawned_workers_read_the_same_prompts(prompts: str) -> None:
    loader = ready(prompts, num_heldout=2).train_dataloader()
    spawned = DataLoader(
        loader.dataset,
        batch_size=None,
        sampler=range(3),
        num_workers=1,
        multiprocessing_context="spawn",
    )
    assert list(spawned) == list(islice(loader, 3))


def test_starting_at_an_iteration_gives_the_tail_of_the_full_run(prompts: str) -> None:
    full = batches(ready(prompts, at(steps=12)))
    assert len(full) == 12
    assert batches(ready(prompts, at(step=7, steps=12))) == full[7:]


def test_without_a_step_limit_the_loader_is_endless(prompts: str) -> None:
    loader = ready(prompts, at(step=5)).train_dataloader()
    with pytest.raises(TypeError):
        len(loader)
    assert [batch.iteration for batch in islice(loader, 3)] == [5, 6, 7]


def test_a_new_pass_over_the_loader_continues_from_the_step(prompts: str) -> None:
    trainer = at(steps=6)
    loader = ready(prompts, trainer, num_workers=1).train_dataloader()
    assert next(iter(loader)).iteration == 0
    trainer.global_step = 4
    assert [batch.iteration for batch in loader] == [4, 5]


def test_ranks_share_the_global_batch(prompts: str) -> None:
    whole = batches(ready(prompts), 5)
    shares = [batches(ready(prompts, at(rank=rank, world=2)), 5) for rank in range(2)]
    for batch, first, second in zip(whole, *shares, strict=True):
        assert first.fake + second.fake == batch.fake
        assert first.generator + second.generator == batch.generator
        assert (first.position, second.position) == (0, 2)
    # Lightning replaces any other kind of sampler when there are several ranks.
    assert isinstance(ready(prompts).train_dataloader().sampler, DistributedSampler)


def test_held_out_prompts_are_never_trained_on(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(f"prompt {n % 15}" for n in range(20)))  # five appear twice
    chosen = []
    for seed in (0, 0, 1):
        data = ready(str(path), num_heldout=4, seed=seed)
        trained = {text for batch in batches(data, 20) for text in batch.fake + batch.generator}
        assert len(data.heldout_prompts) == 4
        assert trained == {f"prompt {n}" for n in range(15)} - set(data.heldout_prompts)
        chosen.append(list(data.heldout_prompts))
    assert chosen[0] == chosen[1] != chosen[2]


def test_held_out_files_and_the_fallback(prompts: str, tmp_path: Path) -> None:
    table = tmp_path / "heldout.csv"
    table.write_text("text\nkept apart\n")
    data = ready(prompts, heldout=str(table), column="text")
    assert list(data.heldout_prompts) == ["kept apart"]
    assert len(data.train_prompts) == 10
    assert ready(prompts).heldout_prompts[:] == [f"prompt {n}" for n in range(10)]


def test_setup_logs_one_line(prompts: str, caplog: pytest.LogCaptureFixture) -> None:
    Path(prompts).write_text("a\n\nb\n \nc\n")
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        ready([prompts], num_heldout=1)
    expected = "2 training prompts from 1 file(s), 2 blank lines skipped, 1 held out."
    assert caplog.messages == [expected]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": None}, "--data.prompts is missing; give a file .* --data.prompts prompts.txt"),
        ({"prompts": []}, "--data.prompts is missing"),
        ({"prompts": "gone.txt"}, "--data.prompts: there is no file 'gone.txt'"),
        ({"heldout": "gone.txt"}, "--data.heldout: there is no file 'gone.txt'"),
        ({"column": "text"}, "--data.column is 'text', but a .txt file .* has no columns"),
        ({"batch_size": 0}, "--data.batch_size is 0; it must be 1 or more"),
        ({"num_workers": -1}, "--data.num_workers is -1; it must be 0 or more"),
        ({"num_heldout": -1}, "--data.num_heldout is -1; it must be 0 or more"),
        ({"num_heldout": 1, "heldout": "x.txt"}, "--data.num_heldout is 1 and --data.heldout"),
        ({"num_heldout": 10}, "--data.num_heldout is 10 of 10 prompts, which leaves none"),
        ({"num_heldout": 99}, "--data.num_heldout is 99 of 10 prompts, which leaves none"),
        ({"batch_size": 6, "trainer": at(world=4)}, "--data.batch_size is 6, which 4 processes"),
    ],
)
def test_bad_options_are_named(prompts: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ready(**{"prompts": prompts} | options)


class Recorder(L.LightningModule):
    """Step one optimizer per iteration and record the batches."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[PromptBatch] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        self.seen.append(batch)
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        optimizer.step()


def fit(prompts: str, steps: int, resume: str | None = None, **options: Any) -> Recorder:
    """Train to a step and save a checkpoint beside the prompts."""
    module = Recorder()
    trainer = L.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    data = PromptDataModule(prompts, batch_size=4, num_workers=0)
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    trainer.save_checkpoint(Path(prompts).with_name("last.ckpt"))
    return module


def test_a_resumed_fit_continues_the_order_without_a_warning(prompts: str, tmp_path: Path) -> None:
    full = fit(prompts, 6).seen
    fit(prompts, 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resumed = fit(prompts, 6, resume=str(tmp_path / "last.ckpt")).seen
    assert [batch.iteration for batch in full] == list(range(6))
    assert resumed == full[2:]
    assert not [str(w.message) for w in caught if "resum" in str(w.message)]


def test_short_epochs_do_not_repeat_the_order(prompts: str) -> None:
    seen = fit(prompts, 6, limit_train_batches=2).seen
    assert [batch.iteration for batch in seen] == list(range(6))


@pytest.mark.parametrize("workers", [0, 1])
def test_prompts_come_tokenized_from_the_loader(prompts: str, tiny_sd: str, workers: int) -> None:
    teacher = StableDiffusion.from_pretrained(tiny_sd)
    trainer = at()
    trainer.lightning_module = SimpleNamespace(teacher=teacher)
    data = ready(prompts, trainer, batch_size=4, num_workers=workers)
    batch = next(iter(data.train_dataloader()))
    for texts, tokens in (
        (batch.fake, batch.fake_tokens),
        (batch.generator, batch.generator_tokens),
    ):
        assert torch.equal(tokens["input_ids"], teacher.tokenize(texts)["input_ids"])
