"""Training prompts, in an order that depends only on the seed.

Iteration i draws B prompts for each step of the fake score and B for the generator, so 2B with one
step of the fake score. The n-th draw of a run is prompt n % N of
permutation n // N of the N training prompts. So every prompt is seen once before any is seen twice,
and the order does not depend on workers, the number of ranks or restarts.
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
from sid_lsg.data.real_images import RealBatch, RealImages, join
from sid_lsg.data.sequences import Without
from sid_lsg.data.tables import TABLES
from sid_lsg.messages.errors import UsageError
from sid_lsg.method.randomness import permute
from sid_lsg.teachers.base import Teacher, Tokenize, Tokens

_HELDOUT_EPOCH = -1  # the permutation that chooses the held-out prompts; training counts from 0


class PromptBatch(NamedTuple):
    """One rank's prompts for one iteration."""

    iteration: int
    position: int  # index of this rank's first sample in the global batch
    fake: list[str]  # for phase 1, the fake score: one step's prompts after the other
    generator: list[str]  # for phase 2, the generator
    fake_tokens: Tokens = {}  # noqa: RUF012 (read only)
    generator_tokens: Tokens = {}  # noqa: RUF012
    real: RealBatch | None = None  # real images for phase 1, with --data.real_images
    fake_step: int = 0  # the step of the fake score that these are for, after `of_fake_step`

    def with_tokens_of(self, other: "PromptBatch") -> "PromptBatch":
        """Return the batch with the tokens of another one, which has the same prompts."""
        return self._replace(
            fake_tokens=other.fake_tokens,
            generator_tokens=other.generator_tokens,
            real=self.real and self.real._replace(tokens=other.real.tokens if other.real else {}),
        )

    def of_fake_step(self, step: int) -> "PromptBatch":
        """Return the batch with only one fake-score step's prompts and real images."""
        size = len(self.generator)
        part = slice(step * size, (step + 1) * size)
        return self._replace(
            fake=self.fake[part],
            fake_tokens={name: value[part] for name, value in self.fake_tokens.items()},
            real=self.real and self.real.select(part),
            fake_step=step,
        )


class PromptDataset(Dataset[PromptBatch]):
    """Map an iteration's number to its batch.

    Args:
        prompts: The training prompts.
        batch_size: B, prompts per phase over all ranks; a multiple of `world_size`.
        seed: The seed of the order.
        rank: The rank, which gets the contiguous share of the global batch with this index.
        world_size: The number of ranks.
        tokenize: Tokenizes prompts; if None, the training process does.
        real: Returns real images, given the number of the first and the count.
        fake_steps: Steps of the fake score per iteration, with B prompts and real images each.
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
        fake_steps: int = 1,
    ) -> None:
        self.fake_steps = fake_steps
        self.prompts = prompts
        self.batch_size = batch_size
        self.seed = seed
        self.share = batch_size // world_size
        self.position = rank * self.share
        self.tokenize = tokenize
        self.real = real

    def __getitem__(self, iteration: int) -> PromptBatch:
        steps = self.fake_steps
        batches = torch.arange((steps + 1) * iteration, (steps + 1) * (iteration + 1))[:, None]
        n = batches * self.batch_size + self.position + torch.arange(self.share)
        size = len(self.prompts)
        places = permute(n % size, size, self.seed, n // size)
        *fake, generator = ([self.prompts[place] for place in row] for row in places.tolist())
        fakes = [prompt for prompts in fake for prompt in prompts]
        batch = PromptBatch(iteration, self.position, fakes, generator)
        if self.tokenize:
            batch = batch._replace(
                fake_tokens=self.tokenize(fakes), generator_tokens=self.tokenize(generator)
            )
        if self.real is None:
            return batch
        first = iteration * steps * self.batch_size + self.position
        real = [self.real(first + step * self.batch_size, self.share) for step in range(steps)]
        return batch._replace(real=join(real))


class Iterations(DistributedSampler[int]):
    """The numbers of the remaining iterations.

    Every rank visits every iteration, and the dataset returns its share. It is a
    `DistributedSampler` because Lightning would split any other sampler among the ranks.

    Args:
        done: Returns the number of finished iterations; called at the start of each epoch.
        total: Number of iterations of the whole run; None means no end.
    """

    def __init__(self, done: Callable[[], int], total: int | None) -> None:
        self.done = done
        self.total = total

    def __iter__(self) -> Iterator[int]:
        first = self.done()
        return iter(count(first) if self.total is None else range(first, self.total))

    def __len__(self) -> int:
        """Return the total with the finished ones, which a resumed Trainer counts as fetched."""
        if self.total is None:
            raise TypeError("endless")  # tells Lightning that there is no length
        return self.total


class StatelessDataLoader(DataLoader[PromptBatch]):
    """A data loader without state: its order depends only on the iteration.

    Lightning warns about resuming within an epoch if the loader lacks these two methods.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Ignore the state."""


class PromptDataModule(L.LightningDataModule):
    """Training prompts, and held-out prompts for image grids and metrics.

    Args:
        prompts: Training prompts: a file, a glob or a list of them. A .txt file has one prompt per
            line (UTF-8); .jsonl, .csv, .tsv and .parquet files have them in `column`. Blank
            prompts are skipped. Relative paths start at the working directory; the prefix
            `package:` means a file installed with sid_lsg, for example
            `package:demo/fashion/prompts.txt`.
        column: Column of .jsonl, .csv, .tsv and .parquet files that holds the prompts.
        batch_size: Prompts per phase and iteration over all processes, so that a run does not
            depend on the number of GPUs. Must be a multiple of the number of processes.
        num_workers: Processes per rank that read and tokenize prompts in advance; 0 does it in the
            training process. One is enough for text.
        heldout: Prompts for image grids and metrics: files as for `prompts`. They are not checked
            for overlap with the training prompts.
        num_heldout: Hold out this many training prompts, chosen by `seed`, with all their
            duplicates; an alternative to `heldout`. With neither option, grids and metrics use the
            training prompts.
        seed: Seed of the order of prompts and of the choice of `num_heldout`.
        real_images: Folder of real images with captions, for --model.real_data: a metadata.jsonl,
            .csv, .tsv or .parquet with the columns file_name and text, or a cat.txt for each
            cat.png. Of several captions one is drawn by `seed`. Images are read as viewers show
            them (EXIF orientation, colour profile, transparency on white), center-cropped and
            resized to the teacher's resolution.

    Raises:
        UsageError: If an option is out of range, or (in `setup`) a file cannot be used.
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
        """The held-out prompts, or the training prompts if none are held out."""
        return self._heldout_prompts or self.train_prompts

    def all_prompts(self) -> Iterator[str]:
        """Yield the training prompts, the held-out prompts and the real images' captions."""
        yield from self.train_prompts
        yield from self._heldout_prompts
        yield from self._real.captions if self._real else ()

    def setup(self, stage: str | None = None) -> None:
        """Open the prompt files and find the images, once; `stage` is ignored."""
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
                f"columns; leave the option out or give a {TABLES} file."
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
        """Return a loader with one `PromptBatch` per iteration, starting at the Trainer's step."""
        trainer = self.trainer
        rank = trainer.global_rank if trainer else 0
        total = trainer.max_steps if trainer and trainer.max_steps >= 0 else None
        module, teacher = self._module, self._teacher
        tokenize, real = None, None
        if teacher is not None:
            tokenize = None if teacher.remembered else teacher.tokenize
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
                getattr(module, "fake_steps", 1),
            ),
            batch_size=None,  # the dataset's items are batches
            sampler=Iterations(lambda: trainer.global_step if trainer else 0, total),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self._on_gpu,  # for asynchronous copies of the tokens
        )

    def transfer_batch_to_device(
        self, batch: PromptBatch, device: torch.device, dataloader_idx: int
    ) -> PromptBatch:
        """Move a batch to the device; tokens stay on the CPU if the text encoders do."""
        moved: PromptBatch = super().transfer_batch_to_device(batch, device, dataloader_idx)
        apart = self._teacher is not None and self._teacher.text_is_apart
        return moved.with_tokens_of(batch) if apart else moved

    @property
    def _module(self) -> Any:
        return getattr(self.trainer, "lightning_module", None)

    @property
    def _teacher(self) -> Teacher | None:
        return getattr(self._module, "teacher", None)

    @property
    def _on_gpu(self) -> bool:
        device = getattr(getattr(self.trainer, "strategy", None), "root_device", None)
        return device is not None and device.type == "cuda"

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1


def training_files(prompts: str | list[str] | None) -> list[Path]:
    """Return the files of `--data.prompts`.

    Raises:
        UsageError: If the option is not given, or a file does not exist.
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
    """Split prompts into training and held-out prompts without common texts."""
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
