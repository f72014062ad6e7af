"""Options of the teacher's text encoders."""

from dataclasses import dataclass
from typing import Literal, get_args

from sid_lsg.messages.checks import refuse

TextPrecision = Literal["32", "bf16", "int8"]
TextDevice = Literal["cpu", "drop"]
Null = Literal["zeros", "empty"]


@dataclass(frozen=True)
class Text:
    """The teacher's text encoders.

    Args:
        precision: Precision of their weights: 32, bf16 for half the memory, or int8 for about a
            quarter. T5-XXL takes 18 GiB, 9, or 6. int8 needs bitsandbytes and accelerate (extra
            eight-bit), which round the weights of linear layers to 8 bits; others are in bfloat16.
        device: cpu keeps them in CPU memory and encodes prompts there. drop encodes all prompts of
            the run before the training, keeps the features in CPU memory (up to 16 GiB; a prompt
            takes 5.3 MiB with Stable Diffusion 3, 2.6 with SANA and 0.6 with SDXL, half of that in
            bf16), and frees the text encoders. By default they are on the device of the networks.
        max_sequence_length: Tokens of a prompt that the largest text encoder reads; by default as
            many as in the teacher's pipeline, and at most as many as that accepts (512; Qwen-Image
            1024). Stable Diffusion 3 reads 256 with T5, and SiD-DiT's runs 77; 0 leaves T5 out.
        null: What the networks see in place of a prompt, for guidance: zeros, or the features of
            the empty prompt (empty). Only SDXL has the choice; by default it is its model_index's.
    """

    precision: TextPrecision = "32"
    device: TextDevice | None = None
    max_sequence_length: int | None = None
    null: Null | None = None

    def __post_init__(self) -> None:
        """Validate the choices.

        Raises:
            UsageError: For the first value out of range.
        """
        if self.precision not in get_args(TextPrecision):
            refuse("model.text.precision", self.precision, "32, bf16 or int8")
        if self.device not in (None, *get_args(TextDevice)):
            refuse("model.text.device", self.device, "cpu, drop or null")
        length = self.max_sequence_length
        if length is not None and length < 0:
            refuse("model.text.max_sequence_length", length, "at least 0")
        if self.null not in (None, *get_args(Null)):
            refuse("model.text.null", self.null, "zeros, empty or null")
