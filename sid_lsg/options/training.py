"""Options of `--model.` in groups: weights, adapters, EMA, memory, computing, gradients.

Each group is one argument of `SiDLSG`; --help shows its docstring.
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
    """Choose how the teacher is loaded.

    Args:
        revision: Branch, tag or commit of the teacher on the Hub.
        variant: Variant of the teacher's weight files, for example fp16.
        subfolders: Folders of the teacher's components whose names differ from the components', for
            example {unet: unet_ema}.
    """

    revision: str | None = None
    variant: str | None = None
    subfolders: dict[str, str] | None = None


@dataclass(frozen=True)
class InitialWeights:
    """Initial weights of the trained networks; by default the teacher's.

    Args:
        fake_score: Folder or Hub id of a network to initialize the fake score from, for example an
            exported generator.
        generator: Folder or Hub id of a network to initialize the generator and its EMA from.
    """

    fake_score: str | None = None
    generator: str | None = None


@dataclass(frozen=True)
class Adapters:
    """Train only LoRA adapters of a network, on the teacher's frozen weights, which are held once.

    Args:
        fake_score: Adapters of the fake score, for example {rank: 64}; by default all its weights
            are trained.
        generator: Adapters of the generator; by default all its weights are trained.
    """

    fake_score: LoRA | None = None
    generator: LoRA | None = None

    def __post_init__(self) -> None:
        """Validate both networks' adapters.

        Raises:
            UsageError: If a value is out of range.
        """
        check_options("model.lora.fake_score", self.fake_score)
        check_options("model.lora.generator", self.generator)

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> "Adapters":
        """Read the options from the `lora` section of a configuration.

        Raises:
            UsageError: If a value is out of range.
        """
        return cls(**{name: LoRA(**own) if own else None for name, own in section.items()})


@dataclass(frozen=True)
class EMA:
    """The exponential moving average (EMA) of the generator's weights.

    Args:
        halflife_images: Half-life of the EMA, in images.
        rampup_ratio: Limit the half-life to this share of the images seen so far.
        device: cpu keeps the EMA in CPU memory, except while images are sampled with it. By default
            it is on the device of the generator.
        snapshot_images: Keep two more averages, and save them every so many images in
            `ema_snapshots/`, twice the generator's weights each time. `export --ema_width` makes an
            EMA of any width from them after the training (post-hoc EMA of EDM2); 0 for none.
    """

    halflife_images: float = 50_000.0
    rampup_ratio: float = 0.05
    device: EMADevice | None = None
    snapshot_images: int = 0

    def __post_init__(self) -> None:
        """Validate the values.

        Raises:
            UsageError: For the first value out of range.
        """
        for name in ("halflife_images", "rampup_ratio"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                refuse(f"model.ema.{name}", value, "a finite number of at least 0")
        if self.device not in (None, "cpu"):
            refuse("model.ema.device", self.device, "cpu or null")
        if self.snapshot_images < 0:
            refuse("model.ema.snapshot_images", self.snapshot_images, "at least 0")


@dataclass(frozen=True)
class Memory:
    """Save memory at the cost of time, or of the precision of frozen weights.

    Args:
        activations: Which activations phase 2 (the generator's) stores for its backward pass.
            `fast`: all. `balanced`: all but the teacher's, which are recomputed (1 more network
            evaluation for 18, 2 more with guidance). `lean`: also recomputes the generator's (1
            more). The results are equal.
        checkpointing: Networks with activation checkpointing, which recompute their activations
            block by block in the backward pass. For example [fake_score, generator, teacher].
        frozen_precision: Precision of the frozen linear and convolution weights, which are the
            teacher's and those under LoRA adapters: 32, or bf16 for half the memory. In bf16-mixed
            the results are equal (except with fsdp2). In 32-true the teacher then computes as in
            bf16-mixed. If both networks have adapters, the weights are loaded straight in bf16.
    """

    activations: Activations = "fast"
    checkpointing: list[str] | None = None
    frozen_precision: FrozenPrecision = "32"

    def __post_init__(self) -> None:
        """Validate the choices.

        Raises:
            UsageError: For the first unknown choice.
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
    """TF32 and compilation of the networks.

    Args:
        tf32: Use TF32 for float32 matrix products and convolutions on a GPU, which is 2.5 times as
            fast on an H200. By default they use full float32, as in the paper's runs.
        compile: Compile the networks' blocks with torch.compile, which takes minutes in the first
            iteration. For GPUs: on a CPU it gains only 3%.
    """

    tf32: bool = False
    compile: bool = False


@dataclass(frozen=True)
class Gradients:
    """Clip and scale the gradients of each network.

    Args:
        clip_val: Limit of the gradients; by default they are not clipped.
        clip_algorithm: norm limits the total norm, value limits each entry.
        generator_scale: Factor of the generator's loss: 100 in SiD-DiT's code, 1 in SiD-LSG's.
            Adam's steps do not depend on it, but clipping and Adam's eps act after it. The logged
            loss is without it.
    """

    clip_val: float | None = None
    clip_algorithm: ClipAlgorithm = "norm"
    generator_scale: float = 1.0

    def __post_init__(self) -> None:
        """Validate the options.

        Raises:
            UsageError: If the limit is not a positive number or the algorithm is unknown.
        """
        if self.clip_val is not None and not (math.isfinite(self.clip_val) and self.clip_val > 0):
            refuse("model.gradients.clip_val", self.clip_val, "a positive number")
        if self.clip_algorithm not in get_args(ClipAlgorithm):
            refuse("model.gradients.clip_algorithm", self.clip_algorithm, "norm or value")
        if not 0 < self.generator_scale < math.inf:
            refuse("model.gradients.generator_scale", self.generator_scale, "a positive number")
