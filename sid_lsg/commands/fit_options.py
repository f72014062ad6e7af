"""Parse the options of `fit` for other commands, without building anything."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jsonargparse import SUPPRESS, Namespace

from sid_lsg.commands.fit import SiDCLI, in_current_names
from sid_lsg.commands.parser import description
from sid_lsg.commands.table import PROGRAM
from sid_lsg.data.prompts import PromptDataModule
from sid_lsg.training.module import SiDLSG


class FitOptions(SiDCLI):
    """The options of `fit`, and a command's own after `--COMMAND.`.

    Attributes:
        config: The parsed options.
    """

    config: Namespace

    def __init__(self, tool: Callable[..., Any], options: type, args: Sequence[str]) -> None:
        """Parse the options.

        Args:
            tool: The function of the command, with the same name.
            options: A dataclass of the command's own options.
            args: The command line after the command.
        """
        self._own = options, tool.__name__
        arguments, sys.argv = sys.argv, sys.argv[:1]  # Lightning warns about other arguments there
        try:
            super().__init__(
                SiDLSG,
                PromptDataModule,
                args=list(args),
                run=False,
                seed_everything_default=0,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                trainer_defaults={"max_steps": 10_000, "logger": False},
                parser_kwargs={
                    "prog": f"{PROGRAM} {tool.__name__}",
                    "description": description(tool),
                },
            )
        finally:
            sys.argv = arguments

    def parsers_key(self) -> tuple[Any, ...]:
        """Return what the parsers depend on."""
        return (type(self), *self._own)

    def read(self, args: Sequence[str]) -> Namespace:
        """Parse other arguments: building a parser takes longer than parsing."""
        self.config = self.parser.parse_args(in_current_names(args))
        return self.config

    def module(self, changes: Mapping[str, Any]) -> SiDLSG:
        """Create the module, with changes of `--model.` by dotted names."""
        model = self.config.model.clone()
        for name, value in changes.items():
            model[name] = value
        made: SiDLSG = self.parser.instantiate_classes(Namespace(model=model)).model
        return made

    def add_arguments_to_parser(self, parser: Any) -> None:
        """Add the command's own options."""
        parser.add_dataclass_arguments(*self._own)
        super().add_arguments_to_parser(parser)
        for name in ("ckpt_path", "weights_only"):  # a run's config.yaml contains them
            parser.add_argument(f"--{name}", default=None, help=SUPPRESS)

    def _set_seed(self) -> None:
        """Do nothing: no seed is needed."""

    def before_instantiate_classes(self) -> None:
        """Do nothing: no prompts or run directory are needed."""

    def instantiate_classes(self) -> None:
        """Do nothing: only the options are needed."""

    def after_instantiate_classes(self) -> None:
        """Do nothing: there are no optimizers to configure."""


def reader(tool: Callable[..., Any], options: type) -> Callable[[Sequence[str]], Namespace]:
    """Return a function that parses the options of `fit` for a command, for many runs."""
    made: list[FitOptions] = []

    def read(args: Sequence[str]) -> Namespace:
        if not made:
            made.append(FitOptions(tool, options, args))
            return made[0].config
        return made[0].read(args)

    return read
