"""The guidance scales and the paper's presets for them."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sid_lsg.messages.errors import UsageError

if TYPE_CHECKING:
    from sid_lsg.method.guidance import Kappas

Preset = Literal["none", "long", "short", "lsg", "zero", "anti"]


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance scales; 1 means no guidance and needs no second pass.

    The preset sets all four scales. The options after it override single scales.

    Args:
        preset: Strategy of the paper. none: all four are 1. long: only the teacher is guided
            (kappa_4 = scale > 1). short: only the fake score is weakened (kappa_1..3 = scale < 1).
            lsg, "long and short": all four are the scale. zero: the fake score sees no text
            (kappa_1..3 = 0, kappa_4 = 1). anti: the fake score is pushed away from the text
            (kappa_1..3 = scale < 0, kappa_4 = 1). zero and anti are for runs with
            --model.real_data, which keeps images and prompts together ("Few-step SiD", arXiv
            2505.12674).
        scale: The preset's scale. By default 1.5 for lsg and long, 0.5 for short; anti needs one.
            The paper's lsg runs use 1.5 for the lowest FID, and 2, 3 and 4.5 for a higher CLIP
            score. Runs of flow-matching teachers use 4.5.
        train_fake: kappa_1, for the fake score while it is trained.
        eval_fake: kappa_2 and kappa_3, for the fake score in the generator's loss: one number for
            both, or two.
        eval_real: kappa_4, for the teacher in the generator's loss.
        true_cfg: Whether scales apply to the difference from the null prompt's prediction
            (classifier-free guidance). Only teachers with a guidance embedding, such as FLUX.1-dev,
            can do without; that takes half the time.
        embedded: Input of the guidance embedding of the fake score and the teacher: a number for
            all of them, or null for each one's kappa, as in SiD-DiT. The generator gets 1.
    """

    preset: Preset = "lsg"
    scale: float | None = None
    train_fake: float | None = None
    eval_fake: float | list[float] | None = None
    eval_real: float | None = None
    true_cfg: bool = True
    embedded: float | None = None

    def __post_init__(self) -> None:
        """Validate the scales.

        Raises:
            UsageError: If a scale is not finite, or does not go with the preset.
        """
        if isinstance(self.eval_fake, list) and len(self.eval_fake) != 2:
            raise UsageError(
                "--model.guidance.eval_fake takes one number or two (kappa_2 and kappa_3), got "
                f"{self.eval_fake}."
            )
        for name in ("scale", "train_fake", "eval_fake", "eval_real", "embedded"):
            value = getattr(self, name)
            for number in value if isinstance(value, list) else [value]:
                if number is not None and not math.isfinite(number):
                    raise UsageError(
                        f"--model.guidance.{name} must be a finite number, got {number}; 1 means "
                        "no guidance."
                    )
        if not self.true_cfg and self.embedded is not None:
            raise UsageError(
                "--model.guidance.true_cfg is false and --model.guidance.embedded is "
                f"{self.embedded}, so the scales have no effect. Leave one of the two out."
            )
        if self.preset == "none" and self.scale not in (None, 1):
            raise UsageError(
                f"--model.guidance.scale is {self.scale}, but the preset 'none' has no guidance. "
                "Choose --model.guidance.preset long, short or lsg, or leave the scale out."
            )
        if self.preset == "zero" and self.scale not in (None, 0):
            raise UsageError(
                f"--model.guidance.scale is {self.scale}, but the preset 'zero' guides the fake "
                "score at 0. Choose --model.guidance.preset anti, or leave the scale out."
            )
        if self.preset == "anti" and (self.scale is None or self.scale >= 0):
            found = "missing" if self.scale is None else f"{self.scale}"
            raise UsageError(
                f"--model.guidance.scale is {found}, but the preset 'anti' needs a negative one. "
                "Give for example --model.guidance.scale -0.5, or choose the preset zero."
            )

    def check_teacher(self, embeds_guidance: bool) -> None:
        """Reject options of the guidance embedding for a teacher without one.

        Raises:
            UsageError: If there is no embedding.
        """
        if embeds_guidance or (self.true_cfg and self.embedded is None):
            return
        name = "embedded" if self.true_cfg else "true_cfg"
        value = self.embedded if self.true_cfg else "false"
        raise UsageError(
            f"--model.guidance.{name} is {value}, but this teacher has no guidance embedding. "
            "Leave it out."
        )

    @property
    def kappas(self) -> "Kappas":
        """Return kappa_1..kappa_4 of the preset and the single scales."""
        from sid_lsg.method.guidance import Kappas

        defaults = {"none": 1.0, "long": 1.5, "short": 0.5, "lsg": 1.5, "zero": 0.0}
        scale = defaults[self.preset] if self.scale is None else float(self.scale)
        fake = scale if self.preset in ("short", "lsg", "zero", "anti") else 1.0
        real = scale if self.preset in ("long", "lsg") else 1.0
        eval_fake = self.eval_fake if self.eval_fake is not None else fake
        pair = eval_fake if isinstance(eval_fake, list) else [eval_fake, eval_fake]
        return Kappas(
            float(fake if self.train_fake is None else self.train_fake),
            float(pair[0]),
            float(pair[1]),
            float(real if self.eval_real is None else self.eval_real),
        )
