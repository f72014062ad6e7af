"""Choose how many tokens of a prompt are read, as the pipelines' `max_sequence_length` does."""

from collections.abc import Mapping
from typing import Any, ClassVar

from sid_lsg.messages.checks import refuse
from sid_lsg.teachers.assembled import AssembledTeacher

LENGTH_KEY = "max_sequence_length"
"""The pipelines' argument; in the configuration of the first tokenizer, the model's number."""


class ChosenLength(AssembledTeacher):
    """A teacher with a text encoder whose number of tokens can be chosen.

    Attributes:
        usual_length: The number in the family's pipeline.
        least_length: The smallest number that the family can read.
        most_length: The largest number that the family's pipeline accepts.
    """

    usual_length: ClassVar[int]
    least_length: ClassVar[int] = 1
    most_length: ClassVar[int] = 512
    _options: Mapping[str, Any] = {"guidance_scale": 1}

    @property
    def max_sequence_length(self) -> int:
        """Return the tokenizer config's number of tokens, or the pipeline's."""
        return int(self._config.get(LENGTH_KEY, self.usual_length))

    @max_sequence_length.setter
    def max_sequence_length(self, length: int) -> None:
        """Set the number of tokens; exported folders keep it.

        Raises:
            UsageError: If the family's pipeline does not accept it.
        """
        if not self.least_length <= length <= self.most_length:
            wanted = f"{self.least_length} to {self.most_length} for this teacher"
            refuse("model.text.max_sequence_length", length, wanted)
        self._config[LENGTH_KEY] = length

    @property
    def pipeline_options(self) -> Mapping[str, Any]:
        """Return the pipeline's arguments for a generator, with the length if it is another."""
        length = self.max_sequence_length
        more = {} if length == self.usual_length else {LENGTH_KEY: length}
        return {**self._options, **more}

    @pipeline_options.setter
    def pipeline_options(self, options: Mapping[str, Any]) -> None:
        """Set the arguments besides the length."""
        self._options = options

    @property
    def _config(self) -> dict[str, Any]:
        found: dict[str, Any] = next(iter(self.tokenizers.values())).init_kwargs
        return found
