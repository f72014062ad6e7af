"""The command line: `python -m sid_lsg.cli fit --config configs/lsg.yaml`, and its tools."""

import difflib
import importlib
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

if __name__ == "__main__":
    # The imports below take seconds, in which Ctrl-C would end in a traceback.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    launched = os.environ.get("LOCAL_RANK", "0") != "0" and "TORCHELASTIC_RUN_ID" not in os.environ
    if launched and sys.argv[1:2] == ["fit"]:
        # Lightning has launched this process. The first one answers signals for all: if this one
        # ended before they have met, that one would wait for it, as deaf, for half an hour.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

# Said before transformers and diffusers are imported: they report optional packages that this
# project does not use, and draw a progress bar for every file of weights.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_MININTERVAL", "0.5")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # which a forked worker cannot have
warnings.filterwarnings("ignore", message=r".*module\(s\) in eval mode at the start of training")
warnings.filterwarnings("ignore", message=".*does not have many workers")
warnings.filterwarnings("ignore", message=".*treespec, LeafSpec")
warnings.filterwarnings("ignore", message=".*but there is no last checkpoint available")
# Older releases of diffusers, which this project serves too, have no other name for it.
warnings.filterwarnings("ignore", message=".*`torch_dtype` is deprecated")

from diffusers.utils.logging import disable_progress_bar as be_quiet  # noqa: E402
from jsonargparse import ActionConfigFile  # noqa: E402
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI  # noqa: E402
from lightning.pytorch.utilities import rank_zero_only  # noqa: E402
from lightning.pytorch.utilities.exceptions import MisconfigurationException  # noqa: E402
from transformers.utils.logging import disable_progress_bar  # noqa: E402

from sid_lsg.callbacks import (  # noqa: E402
    Checkpoint,
    Export,
    Health,
    ImageGrid,
    Interruption,
    Metrics,
    Progress,
    Throughput,
)
from sid_lsg.callbacks.interruption import ending_on_signals  # noqa: E402
from sid_lsg.checkpoints.resume import check_resume  # noqa: E402
from sid_lsg.data.prompts import PromptDataModule, training_files  # noqa: E402
from sid_lsg.messages.arguments import check_config_files  # noqa: E402
from sid_lsg.messages.checks import refuse  # noqa: E402
from sid_lsg.messages.errors import Interrupted, TrainingStopped, UsageError  # noqa: E402
from sid_lsg.networks.precision import allow_tf32  # noqa: E402
from sid_lsg.options.real_data import check_real_data  # noqa: E402
from sid_lsg.study.options import check_series  # noqa: E402
from sid_lsg.training.module import SiDLSG  # noqa: E402
from sid_lsg.training.optimizer_options import check_shards, check_steps, optimizers_of  # noqa: E402
from sid_lsg.training.run_directory import (  # noqa: E402
    SaveConfig,
    check_files,
    continue_requeued,
    is_of_run,
    put_inside,
    run_directory,
)
from sid_lsg.training.strategies import register_strategies  # noqa: E402
from sid_lsg.training.trainer_options import check_trainer  # noqa: E402

PROGRAM = "python -m sid_lsg.cli"
_ADAM = {
    "class_path": "sid_lsg.optimizers.AdamWithoutMomentum",
    "init_args": {"lr": 1e-6, "betas": [0.0, 0.999]},
}


_TOOLS = {
    "generate": ("generate", "make pictures of prompts"),
    "app": ("app", "try a generator in the browser, beside its teacher"),
    "export": ("export", "write a trained generator as a folder for other software"),
    "consolidate": ("consolidate", "make one file of a checkpoint that lies in a folder"),
    "import-official": ("import_official", "make such a folder from an official checkpoint"),
    "evaluate": ("evaluate", "score a model or a folder of images, and write a report"),
    "prepare-coco": ("prepare_coco", "make COCO's caption list and reference statistics"),
    "study": ("study", "run a grid of fits and compare their scores, as tables and plots"),
    "estimate": ("estimate", "say what a fit will need: memory on each device, and hours"),
    "benchmark": ("benchmark", "measure how fast a fit is on this machine, and in how much memory"),
}  # command: (module of sid_lsg.commands and its function, what it does)
_OF_FIT = ("estimate", "benchmark")  # they take the options of `fit`, and read them themselves
_COMMANDS = ("fit", *_TOOLS)


def _refuse(message: str) -> NoReturn:
    """End the command with one message."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


_format_foreign_warning = warnings.formatwarning


def _format_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """Write this project's warnings for people; others' with where they come from."""
    if Path(filename).is_relative_to(Path(__file__).parent):
        return f"warning: {message}\n"
    return _format_foreign_warning(message, category, filename, lineno, line)


class _Parser(LightningArgumentParser):
    """A parser that answers a mistake with the mistake, not with 200 lines of usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Name what was wrong, and where to look it up."""
        message = re.sub(r'Parser key "([\w.]+)":\s*', r"--\1: ", message.strip())
        numbers = re.search(r"(Got|Given) value: -?(nan|inf)", message)
        hint = " Give a finite number." if numbers else ""
        message = re.sub(r"\bfit\.(?=\w)", "--", message)  # options as the main parser names them
        command = self.prog.replace(" [options]", "") if self.prog.startswith(PROGRAM) else PROGRAM
        if self.prog == PROGRAM:  # the main parser, which has no other command
            command += " fit"
        _refuse(f"{message}.{hint} `{command} --help` explains every option.")

    def add_config(self) -> None:
        """Take options from files too."""
        self.add_argument(
            "-c",
            "--config",
            action=ActionConfigFile,
            help="A YAML file with any of these options. Several are merged, the last one wins.",
        )


class SiDCLI(LightningCLI):
    """LightningCLI with this project's callbacks as options and everything in one run directory."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make a parser whose errors are one message."""
        parser = _Parser(**kwargs)
        parser.add_config()
        return parser

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Offer `fit`; there is no validation loop, since callbacks evaluate."""
        return {"fit": LightningCLI.subcommands()["fit"]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callbacks, and one seed for all."""
        parser.add_lightning_class_args(Interruption, "interruption")
        # Before the others: what they do after an iteration is not its time.
        parser.add_lightning_class_args(Throughput, "throughput")
        parser.add_lightning_class_args(Checkpoint, "checkpoint")
        parser.add_lightning_class_args(ImageGrid, "image_grid")
        parser.add_lightning_class_args(Progress, "progress")
        parser.add_lightning_class_args(Export, "export")
        parser.add_lightning_class_args(Metrics, "metrics")
        parser.add_lightning_class_args(Health, "health")
        parser.link_arguments("metrics.clip", "health.clip")
        # The module's own defaults, as a class that configs and the command line can change.
        for name in ("optimizer_fake", "optimizer_generator"):
            parser.set_defaults({f"model.{name}": _ADAM})
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)

    def _parse_ckpt_path(self) -> None:
        """Leave the checkpoint unread: Lightning would load all of it, to find hyperparameters."""

    def _set_seed(self) -> None:
        """Refuse what is no seed: Lightning takes true for a random one, which nothing repeats."""
        seed = self.config[self.subcommand].seed_everything
        if isinstance(seed, bool) or not 0 <= int(seed) < 2**32:
            refuse("seed_everything", seed, "a number from 0 to 4294967295")
        super()._set_seed()

    def before_instantiate_classes(self) -> None:
        """Refuse what cannot work before anything is built, let alone downloaded."""
        config = self.config[self.subcommand]
        config.weights_only = True  # a checkpoint is data, never code
        continue_requeued(config)
        check_trainer(config.trainer)
        if config.trainer.enable_progress_bar is False:  # Lightning refuses any bar beside that
            config.trainer.enable_progress_bar, config.progress.refresh_rate = None, 0
        training_files(config.data.prompts)
        check_real_data(config.model.real_data, config.data.real_images)
        put_inside(config.trainer)
        self.resumed = check_files(config)

    def before_fit(self) -> None:
        """Check batch and optimizers, and read the prompts, before the run directory is made."""
        micro, batch = self.model.micro_batch_size, self.datamodule.batch_size
        share = batch // self.trainer.world_size
        if micro is not None and share % micro:
            raise UsageError(
                f"--data.batch_size: {batch} prompts on {self.trainer.world_size} process(es) are "
                f"{share} each, which micro-batches of {micro} do not divide. Change "
                "--data.batch_size or --model.micro_batch_size."
            )
        # The prompts are read now, so that a run that cannot start leaves no trace.
        self.datamodule.trainer = self.trainer
        self.datamodule.setup("fit")
        config, strategy = self.config[self.subcommand], self.trainer.strategy
        check_shards(self.model.configure_optimizers(), strategy)
        check_steps(optimizers_of(config.model), strategy.root_device)
        if self.resumed is not None:
            check_resume(self.resumed, self.model, batch, self.trainer.max_steps)
            for callback in self.trainer.callbacks:
                if isinstance(callback, Checkpoint):
                    callback.continue_from(self.resumed)
            self.resumed = None  # a deleted file occupies the disk while it is open

    def fit(self, **options: Any) -> None:
        """Train in the run directory, which is this run's alone meanwhile."""
        root = Path(self.trainer.default_root_dir)
        with run_directory(root, resumes=is_of_run(options["ckpt_path"], root)):
            self.trainer.fit(**options)


def main(args: list[str] | None = None) -> None:
    """Run the command line; a user's mistake ends it with one message and status 2.

    SIGTERM and Ctrl-C end it with status 143 and 130.
    """
    disable_progress_bar()
    be_quiet()
    warnings.formatwarning = _format_warning
    register_strategies()
    allow_tf32(False)  # a run may choose otherwise; pictures and scores are of float32
    arguments = sys.argv[1:] if args is None else args
    try:
        with ending_on_signals():
            _check_command(arguments)
            check_config_files(arguments)
            if arguments and arguments[0] in _TOOLS:
                _run_tool(*arguments)
            else:
                _fit(args)
    except Interrupted as error:
        if rank_zero_only.rank == 0:
            print(f"interrupted: {error}", file=sys.stderr)
        raise
    except TrainingStopped as error:
        print(f"stopped: {error}", file=sys.stderr)
        sys.exit(3)
    except (UsageError, MisconfigurationException) as error:
        # A loader's worker passes its mistake on at the end of its own traceback.
        mistake = f"{UsageError.__module__}.{UsageError.__name__}: "
        _refuse(str(error).rpartition(mistake)[2].strip())


def _check_command(arguments: Sequence[str]) -> None:
    """Refuse a command that there is not, and name those that there are.

    Raises:
        UsageError: If there is none, or another one.
    """
    name, *_ = *arguments, ""
    if name in _COMMANDS or name.startswith("-"):
        return
    found = f"{name!r} is no command" if name else "no command is given"
    near = difflib.get_close_matches(name, _COMMANDS, 1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UsageError(
        f"{found}.{hint} The commands are {', '.join(_COMMANDS)}; `{PROGRAM} --help` says what "
        "they do."
    )


def _fit(args: list[str] | None) -> None:
    """Distil a teacher, as the options say."""
    SiDCLI(
        SiDLSG,
        PromptDataModule,
        args=args,
        seed_everything_default=0,
        auto_configure_optimizers=False,
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
            "epilog": _EPILOG,
            "fit": {"description": _DESCRIPTION},
        },
    )


def description(tool: Callable[..., Any]) -> str:
    """Return what a tool's docstring says before its arguments."""
    return (tool.__doc__ or "").split("\n\n    Args")[0]


def _run_tool(command: str, *arguments: str) -> None:
    """Call a tool's function with its options, which are the function's arguments."""
    name, _ = _TOOLS[command]
    function = getattr(importlib.import_module(f"sid_lsg.commands.{name}"), name)
    if command in _OF_FIT:
        function(arguments)
        return
    if command == "study":
        check_series(arguments)
    parser = _Parser(prog=f"{PROGRAM} {command}", description=description(function))
    parser.add_config()
    parser.add_function_arguments(function, as_group=False)
    config = parser.parse_args(list(arguments))
    config.pop("config")
    function(**config.as_dict())


_EPILOG = "further commands, each with --help of its own: " + "; ".join(
    f"{command}: {what}" for command, (_, what) in _TOOLS.items()
)
_DESCRIPTION = """Distil a teacher into a one-step generator.

Start from a config, and change what you like on the command line:

  python -m sid_lsg.cli fit --config configs/lsg.yaml --data.prompts prompts.txt
"""


if __name__ == "__main__":
    main()
