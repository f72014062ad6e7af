"""Groups of options of `--model.`: where weights come from, EMA, memory, computing, gradients.

Each is one argument of `SiDLSG`; --help shows its docstring.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sid_lsg.messages.checks import refuse
from sid_lsg.options.lora import LoRA, check_options

Activations = Literal["fast", "balanced", "lean"]
FrozenPrecision = Literal["32", "bf16"]
EMADevice = Literal["cpu"]
ClipAlgorithm = Literal["norm", "value"]

CHECKPOINTED = ("fake_score", "generator", "teacher")
"""The networks that can use activation checkpointing."""


@dataclass(frozen=True)
class Loading:
    """How to load the teacher.

    Args:
        revision: Branch, tag or commit of the teacher on the Hub.
        variant: Which of the teacher's weight files to load, for example fp16.
        subfolders: Folders of the teacher's parts that differ from the parts' names, for example
            {unet: unet_ema}.
    """

    revision: str | None = None
    variant: str | None = None
    subfolders: dict[str, str] | None = None


@dataclass(frozen=True)
class InitialWeights:
    """Where the trained networks start; by default both start as the teacher.

    Args:
        fake_score: Folder or Hub id of the network that the fake score starts as, for example an
            exported generator.
        generator: Folder or Hub id of the network that the generator and its EMA start as.
    """

    fake_score: str | None = None
    generator: str | None = None


@dataclass(frozen=True)
class Adapters:
    """Networks that train LoRA adapters only. Needs peft.

    Args:
        fake_score: Adapters of the fake score, for example {rank: 64}; by default all weights are
            trained.
        generator: Adapters of the generator.
    """

    fake_score: LoRA | None = None
    generator: LoRA | None = None

    def __post_init__(self) -> None:
        """Check both networks' adapters.

        Raises:
            UsageError: If they would do nothing, or peft is not installed.
        """
        check_options("model.lora.fake_score", self.fake_score)
        check_options("model.lora.generator", self.generator)

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> "Adapters":
        """Read them from the `lora` section of a configuration.

        Raises:
            UsageError: If they would do nothing, or peft is not installed.
        """
        return cls(**{name: LoRA(**own) if own else None for name, own in section.items()})


@dataclass(frozen=True)
class EMA:
    """The exponential moving average (EMA) of the generator's weights.

    Args:
        halflife_images: Half-life of the EMA, in images.
        rampup_ratio: Limit the half-life to this share of the images seen so far.
        device: cpu keeps the EMA in the CPU's memory, except while images are sampled with it.
    """

    halflife_images: float = 50_000.0
    rampup_ratio: float = 0.05
    device: EMADevice | None = None

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UsageError: For the first value out of range.
        """
        for name in ("halflife_images", "rampup_ratio"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                refuse(f"model.ema.{name}", value, "a finite number of at least 0")
        if self.device not in (None, "cpu"):
            refuse("model.ema.device", self.device, "cpu or null")


@dataclass(frozen=True)
class Memory:
    """Use less memory for more time, or for fewer bits of frozen weights.

    Args:
        activations: What the generator's phase stores for its backward pass. `fast`: everything.
            `balanced`: not the teacher's activations, which are computed again (1 more network
            evaluation for 18, 2 more with guidance). `lean`: not the generator's either (1 more).
            The results are equal.
        checkpointing: Networks that use activation checkpointing: they compute activations again
            in the backward pass. For example [fake_score, generator, teacher].
        frozen_precision: Precision of the teacher's linear and convolution weights: 32, or bf16 for
            half the memory. In bf16-mixed the results are equal (except with fsdp2); in 32-true the
            teacher then computes as in bf16-mixed.
    """

    activations: Activations = "fast"
    checkpointing: list[str] | None = None
    frozen_precision: FrozenPrecision = "32"

    def __post_init__(self) -> None:
        """Check the choices.

        Raises:
            UsageError: For the first that does not exist.
        """
        if self.activations not in get_args(Activations):
            refuse("model.memory.activations", self.activations, "fast, balanced or lean")
        if set(self.checkpointing or ()) - set(CHECKPOINTED):
            wanted = f"a list of {', '.join(CHECKPOINTED)}"
            refuse("model.memory.checkpointing", self.checkpointing, wanted)
        if self.frozen_precision not in get_args(FrozenPrecision):
            refuse("model.memory.frozen_precision", self.frozen_precision, "32 or bf16")

    @property
    def recomputed(self) -> tuple[str, ...]:
        """Return the networks whose forward pass phase 2 recomputes to store fewer activations.

        Phase 2 backpropagates through the fake score, the teacher and the generator, in this order.
        `fast` stores the activations of all three. `balanced` recomputes the teacher's after the
        fake score's are freed, so that only one of the two is held at a time. `lean` also
        recomputes the generator's, last.
        """
        again = {"fast": (), "balanced": ("teacher",), "lean": ("teacher", "generator")}
        return again[self.activations]


@dataclass(frozen=True)
class Compute:
    """How the networks are computed.

    Args:
        tf32: Let a GPU round the factors of float32 products to TF32, which is 2.5 times as fast on
            an H200. By default float32 is float32, as in the paper's runs.
        compile: Compile the networks' blocks with torch.compile, which takes minutes in the first
            iteration. For GPUs: a CPU gains 3%. Not with fsdp2.
    """

    tf32: bool = False
    compile: bool = False


@dataclass(frozen=True)
class Gradients:
    """Clip the gradients of each network.

    Args:
        clip_val: Limit for the gradients; by default none.
        clip_algorithm: norm limits their total norm, value limits each entry.
    """

    clip_val: float | None = None
    clip_algorithm: ClipAlgorithm = "norm"

    def __post_init__(self) -> None:
        """Check the limit.

        Raises:
            UsageError: If it is not a positive number.
        """
        if self.clip_val is not None and not (math.isfinite(self.clip_val) and self.clip_val > 0):
            refuse("model.gradients.clip_val", self.clip_val, "a positive number")
        if self.clip_algorithm not in get_args(ClipAlgorithm):
            refuse("model.gradients.clip_algorithm", self.clip_algorithm, "norm or value")
