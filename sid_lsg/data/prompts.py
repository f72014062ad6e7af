"""Training data: prompts, drawn in an order that depends on the seed and nothing else.

Iteration i draws 2B prompts, B for each phase. The n-th draw of a run is the prompt at place n % N
of the permutation number n // N of the N training prompts, so each prompt is seen once before any
is seen twice, and neither workers, nor the number of ranks, nor a restart change what comes next.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from sid_lsg.data.corpus import find_files, read_corpus
from sid_lsg.data.real_images import RealBatch, RealImages
from sid_lsg.data.sequences import Without
from sid_lsg.messages.errors import UsageError
from sid_lsg.method.randomness import permute
from sid_lsg.teachers.base import Tokenize, Tokens

_HELDOUT_EPOCH = -1  # the permutation that chooses the held-out prompts; training counts from 0


class PromptBatch(NamedTuple):
    """One rank's prompts for one iteration."""

    iteration: int
    position: int  # of this rank's first sample in the global batch
    fake: list[str]  # for the fake score's phase
    generator: list[str]  # for the generator's phase
    fake_tokens: Tokens = {}  # noqa: RUF012 (read only)
    generator_tokens: Tokens = {}  # noqa: RUF012
    real: RealBatch | None = None  # images for the fake score's phase, if they are asked for


class PromptDataset(Dataset[PromptBatch]):
    """The batch of every iteration, as a function of the iteration.

    Args:
        prompts: The training prompts.
        batch_size: B, prompts per phase over all ranks; a multiple of `world_size`.
        seed: The seed of the order.
        rank: Which contiguous share of the global batch to give.
        world_size: The number of shares.
        tokenize: What turns prompts into tokens; None leaves that to the training process.
        real: Gives real images to go with the prompts: which one is the first, and how many.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        tokenize: Tokenize | None = None,
        real: Callable[[int, int], RealBatch] | None = None,
    ) -> None:
        self.prompts = prompts
        self.batch_size = batch_size
        self.seed = seed
        self.share = batch_size // world_size
        self.position = rank * self.share
        self.tokenize = tokenize
        self.real = real

    def __getitem__(self, iteration: int) -> PromptBatch:
        phases = torch.tensor([[2 * iteration], [2 * iteration + 1]])
        n = phases * self.batch_size + self.position + torch.arange(self.share)  # [2, share]
        size = len(self.prompts)
        places = permute(n % size, size, self.seed, n // size)
        fake, generator = ([self.prompts[place] for place in row] for row in places.tolist())
        batch = PromptBatch(iteration, self.position, fake, generator)
        if self.tokenize:
            batch = batch._replace(
                fake_tokens=self.tokenize(fake), generator_tokens=self.tokenize(generator)
            )
        if self.real is None:
            return batch
        first = iteration * self.batch_size + self.position
        return batch._replace(real=self.real(first, self.share))


class Iterations(DistributedSampler[int]):
    """The iterations still to do.

    Lightning leaves a `DistributedSampler` alone and would deal the iterations of any other out to
    the ranks. Here every rank visits every iteration; the dataset gives each its share.

    Args:
        done: Returns how many iterations are done; asked whenever an epoch of the Trainer begins.
        total: How many there are in the whole run; None means no end.
    """

    def __init__(self, done: Callable[[], int], total: int | None) -> None:
        self.done = done
        self.total = total

    def __iter__(self) -> Iterator[int]:
        first = self.done()
        return iter(count(first) if self.total is None else range(first, self.total))

    def __len__(self) -> int:
        """Return the total, done ones included: a resumed Trainer counts those as fetched."""
        if self.total is None:
            raise TypeError("endless")  # what Lightning takes for "no length"
        return self.total


class StatelessDataLoader(DataLoader[PromptBatch]):
    """A loader that has no state to save: its order continues from the iteration alone.

    Lightning warns about resuming within an epoch unless the loader has these two methods.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Accept nothing."""


class PromptDataModule(L.LightningDataModule):
    """The prompts to train on, and those kept apart for image grids and metrics.

    Args:
        prompts: The training prompts: a file or a glob, or a list of them. A .txt file has one
            prompt per line (UTF-8); .jsonl, .csv and .parquet files have them in `column`. Blank
            prompts are skipped. Relative paths start at the working directory; the prefix
            `package:` means a file that is installed with sid_lsg, for example
            `package:demo/fashion/prompts.txt`.
        column: Which column holds the prompts of .jsonl, .csv and .parquet files.
        batch_size: Prompts per phase and iteration, over all processes together, so that a run
            on more GPUs is the same run. Must be a multiple of the number of processes.
        num_workers: Processes per rank that read and tokenize prompts ahead of the training; 0
            does it in the training process. One is plenty for text.
        heldout: Prompts for image grids and metrics: files as for `prompts`. They are not
            compared with the training prompts; keep them apart yourself.
        num_heldout: Instead of `heldout`: take this many prompts, chosen by `seed`, out of the
            training prompts, together with every duplicate of them. With neither option, grids
            and metrics use the training prompts.
        seed: Determines the order of the prompts and the choice of `num_heldout`.
        real_images: A folder of real images with captions, for --model.real_data: a metadata.jsonl
            or metadata.csv with the columns file_name and text, or cat.txt beside cat.png. They
            are cropped about their centre and resized to the teacher's resolution.

    Raises:
        UsageError: An option has an impossible value, or (in `setup`) a file cannot be used.
    """

    def __init__(
        self,
        prompts: str | list[str] | None = None,
        column: str | None = None,
        batch_size: int = 512,
        num_workers: int = 1,
        heldout: str | list[str] | None = None,
        num_heldout: int = 0,
        seed: int = 0,
        real_images: str | None = None,
    ) -> None:
        super().__init__()
        for option, value, least in (
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("num_heldout", num_heldout, 0),
        ):
            if value < least:
                raise UsageError(f"--data.{option} is {value}; it must be {least} or more.")
        if heldout and num_heldout:
            raise UsageError(
                f"--data.num_heldout is {num_heldout} and --data.heldout is given; give only one."
            )
        self.prompts = prompts
        self.column = column
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.heldout = heldout
        self.num_heldout = num_heldout
        self.seed = seed
        self.real_images = real_images
        self.train_prompts: Sequence[str] = ()
        self._heldout_prompts: Sequence[str] = ()
        self._real: RealImages | None = None

    @property
    def heldout_prompts(self) -> Sequence[str]:
        """The held-out prompts or, when none were asked for, the training prompts."""
        return self._heldout_prompts or self.train_prompts

    def setup(self, stage: str | None = None) -> None:
        """Open the prompt files and find the images, once; `stage` makes no difference."""
        if len(self.train_prompts):
            return
        if self.batch_size % self._world_size:
            raise UsageError(
                f"--data.batch_size is {self.batch_size}, which {self._world_size} processes "
                "cannot share equally; give a multiple of the number of processes."
            )
        files = training_files(self.prompts)
        heldout_files = find_files(self.heldout or [], "--data.heldout")
        if self.column is not None and all(
            path.suffix.lower() == ".txt" for path in files + heldout_files
        ):
            raise UsageError(
                f"--data.column is {self.column!r}, but a .txt file such as {files[0]} has no "
                "columns; leave the option out or give a .jsonl, .csv or .parquet file."
            )
        corpus = read_corpus(files, self.column, "--data.prompts", "--data.column")
        self.train_prompts = corpus
        self._heldout_prompts = read_corpus(
            heldout_files, self.column, "--data.heldout", "--data.column"
        )
        if self.num_heldout:
            self.train_prompts, self._heldout_prompts = _hold_out(
                corpus, self.num_heldout, self.seed
            )
        rank_zero_info(
            f"{len(self.train_prompts):,} training prompts from {len(files):,} file(s), "
            f"{corpus.blank:,} blank lines skipped, {len(self._heldout_prompts):,} held out."
        )
        if self.real_images:
            self._real = RealImages(self.real_images)
            rank_zero_info(f"{len(self._real):,} real images from {self.real_images}.")

    def train_dataloader(self) -> DataLoader[PromptBatch]:
        """Return a loader of one `PromptBatch` per iteration, from the Trainer's step onwards."""
        trainer = self.trainer
        rank = trainer.global_rank if trainer else 0
        total = trainer.max_steps if trainer and trainer.max_steps >= 0 else None
        teacher = getattr(getattr(trainer, "lightning_module", None), "teacher", None)
        tokenize, real = None, None
        if teacher is not None:
            tokenize = teacher.tokenize
            if self._real:
                size = teacher.image_size
                real = partial(self._real.batch, seed=self.seed, size=size, tokenize=tokenize)
        return StatelessDataLoader(
            PromptDataset(
                self.train_prompts,
                self.batch_size,
                self.seed,
                rank,
                self._world_size,
                tokenize,
                real,
            ),
            batch_size=None,  # an item of the dataset is a batch already
            sampler=Iterations(lambda: trainer.global_step if trainer else 0, total),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self._on_gpu,  # tokens then travel without a wait
        )

    @property
    def _on_gpu(self) -> bool:
        device = getattr(getattr(self.trainer, "strategy", None), "root_device", None)
        return device is not None and device.type == "cuda"

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1


def training_files(prompts: str | list[str] | None) -> list[Path]:
    """Return the files that `--data.prompts` names.

    Raises:
        UsageError: If it names none, or one that is not there.
    """
    if not prompts:
        raise UsageError(
            "--data.prompts is missing; give a file with one prompt per line, "
            "for example --data.prompts prompts.txt."
        )
    return find_files(prompts, "--data.prompts")


def _hold_out(
    prompts: Sequence[str], num_heldout: int, seed: int
) -> tuple[Sequence[str], Sequence[str]]:
    """Return the training prompts and the held-out ones, which have no text in common."""
    heldout: list[str] = []
    if num_heldout < len(prompts):
        places = permute(torch.arange(num_heldout), len(prompts), seed, _HELDOUT_EPOCH)
        heldout = [prompts[place] for place in places.tolist()]
    texts = set(heldout)
    dropped = [place for place, prompt in enumerate(prompts) if prompt in texts]
    if len(dropped) == len(prompts) or not heldout:
        raise UsageError(
            f"--data.num_heldout is {num_heldout} of {len(prompts)} prompts, which leaves none to "
            "train on; hold out fewer or give more prompts."
        )
    return Without(prompts, torch.tensor(dropped)), heldout
