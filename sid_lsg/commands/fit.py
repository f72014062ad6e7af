"""`fit`: distil a teacher into a one-step generator."""

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from sid_lsg.callbacks import (
    Checkpoint,
    Export,
    Health,
    ImageGrid,
    Interruption,
    Metrics,
    Progress,
    Throughput,
)
from sid_lsg.checkpoints.resume import check_resume
from sid_lsg.commands.foreign import explaining
from sid_lsg.commands.parser import Parser
from sid_lsg.commands.table import PROGRAM
from sid_lsg.data.prompts import PromptDataModule, training_files
from sid_lsg.distributed.failures import wait_until_ready
from sid_lsg.distributed.signals import protect_launched
from sid_lsg.loggers.sweep import sweep_run
from sid_lsg.messages.checks import refuse
from sid_lsg.messages.errors import UsageError
from sid_lsg.messages.quiet import hide_progress_bars
from sid_lsg.networks.precision import allow_tf32, check_bf16
from sid_lsg.options.real_data import RealData, check_real_data
from sid_lsg.options.renamed import current_arguments
from sid_lsg.options.short_names import named_loggers
from sid_lsg.training.module import SiDLSG
from sid_lsg.training.optimizer_options import check_shards, check_steps, optimizers_of
from sid_lsg.training.run_directory import (
    SaveConfig,
    check_files,
    continue_restarted,
    is_of_run,
    put_inside,
    run_directory,
)
from sid_lsg.training.strategies import register_strategies
from sid_lsg.training.trainer_options import check_trainer

_DESCRIPTION = """Distil a teacher into a one-step generator.

Start from a config, and override its options on the command line:

  python -m sid_lsg.cli fit --config configs/lsg.yaml --data.prompts prompts.txt
"""


class _FitParser(Parser, LightningArgumentParser):
    """A parser of a run's options."""


class SiDCLI(LightningCLI):
    """LightningCLI with this project's callbacks as options, and one run directory."""

    _kept: ClassVar[dict[Any, dict[str, Any]]] = {}  # parsers of earlier commands of this process

    def __init__(self, *args: Any, **options: Any) -> None:
        """Register the strategies, and disable TF32 unless the run enables it."""
        register_strategies()
        allow_tf32(False)
        super().__init__(*args, **options)

    def setup_parser(self, *args: Any) -> None:
        """Build the parsers, or take those of an earlier command: building takes half a second.

        Parsers are kept once they have parsed a line, since a failure may leave marks in them.
        """
        self._parsers = self._kept.pop(self.parsers_key(), {})
        if self._parsers:
            self.__dict__.update(self._parsers)
            return
        before = {*vars(self)}
        super().setup_parser(*args)
        self._parsers = {name: made for name, made in vars(self).items() if name not in before}

    def parsers_key(self) -> tuple[Any, ...]:
        """Return what the parsers depend on."""
        return (type(self),)

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Create a parser that prints an error as one message."""
        parser = _FitParser(**kwargs)
        parser.add_config()
        return parser

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return only `fit`: there is no validation loop, since callbacks evaluate."""
        return {"fit": LightningCLI.subcommands()["fit"]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of the callbacks, and link all seeds to one."""
        parser.add_lightning_class_args(Interruption, "interruption")
        # Before the others, whose work after an iteration is not part of its time.
        parser.add_lightning_class_args(Throughput, "throughput")
        parser.add_lightning_class_args(Checkpoint, "checkpoint")
        parser.add_lightning_class_args(ImageGrid, "image_grid")
        parser.add_lightning_class_args(Progress, "progress")
        parser.add_lightning_class_args(Export, "export")
        parser.add_lightning_class_args(Metrics, "metrics")
        parser.add_lightning_class_args(Health, "health")
        parser.link_arguments("metrics.clip", "health.clip")
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)

    def _parse_ckpt_path(self) -> None:
        """Do nothing; Lightning would load the whole checkpoint to find hyperparameters."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Reject earlier names of options; replace them in a W&B sweep, which may be older.

        Short names of loggers stand for this project's.
        """
        given = sys.argv[1:] if args is None else args
        read = in_current_names(given)
        if read == given:
            super().parse_arguments(parser, args)
        else:  # Lightning warns about arguments that differ from the program's
            self.config = parser.parse_args(read)
        self._kept[self.parsers_key()] = self._parsers

    def _set_seed(self) -> None:
        """Reject invalid seeds: Lightning would draw a random seed for `true`."""
        seed = self.config[self.subcommand].seed_everything
        if isinstance(seed, bool) or not 0 <= int(seed) < 2**32:
            refuse("seed_everything", seed, "a number from 0 to 4294967295")
        super()._set_seed()

    def before_instantiate_classes(self) -> None:
        """Reject invalid options before anything is built or downloaded."""
        hide_progress_bars()
        config = self.config[self.subcommand]
        config.weights_only = True  # a checkpoint is data, never code
        check_trainer(config.trainer)
        if config.trainer.enable_progress_bar is False:  # Lightning then rejects our bar
            config.trainer.enable_progress_bar, config.progress.refresh_rate = None, 0
        training_files(config.data.prompts)
        real = config.model.real_data
        real = None if real is None else RealData(**real.as_dict())
        check_real_data(real, config.data.real_images)
        put_inside(config.trainer)
        continue_restarted(config)
        self.resumed = check_files(config)
        if self.resumed is not None and config.ckpt_path != "last":
            config.ckpt_path = str(self.resumed.path)  # of a run directory, the file

    def instantiate_classes(self) -> None:
        """Create the module, the data, the loggers, the callbacks and the Trainer."""
        with self._explaining():
            super().instantiate_classes()

    def before_fit(self) -> None:
        """Check batch and optimizers, and read the prompts, before the run directory is created."""
        micro, batch = self.model.micro_batch_size, self.datamodule.batch_size
        share = batch // self.trainer.world_size
        if micro is not None and share % micro:
            raise UsageError(
                f"--data.batch_size: {batch} prompts on {self.trainer.world_size} process(es) are "
                f"{share} each, which is not a multiple of the micro-batch {micro}. Change "
                "--data.batch_size or --model.micro_batch_size."
            )
        # Read the prompts now, so that a run that cannot start writes no files.
        self.datamodule.trainer = self.trainer
        self.datamodule.setup("fit")
        config, strategy = self.config[self.subcommand], self.trainer.strategy
        check_shards(self.model.new_optimizers(), strategy)
        self.model.configure_optimizers()  # also checks the schedules
        check_steps(optimizers_of(config.model), strategy.root_device)
        check_bf16(strategy.root_device, self._in_bf16())
        if self.resumed is not None:
            check_resume(self.resumed, self.model, batch, self.trainer.max_steps)
            for callback in self.trainer.callbacks:
                if isinstance(callback, Checkpoint):
                    callback.continue_from(self.resumed)
            self.resumed = None  # a deleted file occupies the disk while it is open

    def _in_bf16(self) -> list[str]:
        """Return the options that ask for bfloat16."""
        config = self.config[self.subcommand]
        asked = {
            "trainer.precision": config.trainer.precision,
            "model.memory.frozen_precision": config.model.memory.frozen_precision,
            "model.text.precision": config.model.text.precision,
        }
        in_16_bits = ("bf16", "int8")  # int8: all but the linear layers
        return [f"--{n} {v}" for n, v in asked.items() if any(one in str(v) for one in in_16_bits)]

    def fit(self, **options: Any) -> None:
        """Train in the run directory, which is locked for this run."""
        wait_until_ready(self.trainer.world_size)
        root = Path(self.trainer.default_root_dir)
        resumes = is_of_run(options["ckpt_path"], root)
        protect_launched(self.trainer.strategy.launcher)
        with run_directory(root, resumes), self._explaining():
            self.trainer.fit(**options)

    def _explaining(self) -> AbstractContextManager[None]:
        """Return a context that explains errors of other packages by the Trainer's options."""

        def defaults() -> dict[str, Any]:
            found: dict[str, Any] = self._parser(self.subcommand).get_defaults().trainer.as_dict()
            return found

        return explaining(self.config[self.subcommand].trainer.as_dict, defaults)


def in_current_names(arguments: Sequence[str]) -> list[str]:
    """Return arguments with the current names of options and the paths of loggers."""
    return named_loggers(current_arguments(arguments, sweep=sweep_run() is not None))


def fit(arguments: Sequence[str]) -> None:
    """Distil a teacher into a one-step generator.

    Args:
        arguments: Options of `fit`.
    """
    line = ["fit", *arguments]
    SiDCLI(
        SiDLSG,
        PromptDataModule,
        # Lightning warns if arguments are passed although the program has its own.
        args=None if line == sys.argv[1:] else line,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,  # would write and read all options once more
        save_config_callback=SaveConfig,
        trainer_defaults={
            "max_epochs": -1,
            "max_steps": 10_000,
            "default_root_dir": "runs/default",
            "use_distributed_sampler": False,
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
            "log_every_n_steps": 10,
            "logger": {"class_path": "sid_lsg.loggers.CSVLogger"},
        },
        parser_kwargs={
            "prog": PROGRAM,
            "fit": {"description": _DESCRIPTION},
        },
    )
