"""Base class of flow-matching teachers: a transformer, real times, diffusers' flow schedulers."""

from collections.abc import Mapping
from typing import Any, ClassVar

from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler
from torch import nn

from sid_lsg.messages.errors import UsageError
from sid_lsg.method.choices import Noise
from sid_lsg.method.flow import TIMESTEPS, FlowSchedule
from sid_lsg.teachers.assembled import AssembledTeacher
from sid_lsg.teachers.layout import NUM_STEPS_KEY


class FlowTeacher(AssembledTeacher):
    """A latent flow-matching model with a transformer that predicts the velocity.

    Attributes:
        gives_times: Whether the family's pipeline gives its scheduler the times 1, 1 - 1 / K, ...
            itself.
    """

    gives_times: ClassVar[bool] = False
    network_name = "transformer"
    pipeline_options: Mapping[str, Any] = {"guidance_scale": 1}
    logit_limit = 10.0  # SiD-DiT
    schedule: FlowSchedule

    def reference_scheduler(self) -> Any:
        """Return the diffusers scheduler that `sample_reference` uses: Euler, with its shift."""
        return FlowMatchEulerDiscreteScheduler.from_config(self.scheduler_config)

    def end_of_encoder(self, network: nn.Module) -> nn.Module:
        """Return the final norm, before the projection to patches."""
        norm: Any = network.norm_out
        return norm

    def stock_scheduler(
        self, t_init: int, num_steps: int, noise: Noise
    ) -> FlowMatchLCMScheduler | None:
        """Return the scheduler whose times are the generator's: 1, 1 - 1 / K, ..., 1 / K.

        It estimates x_0 and adds fresh noise, as `method.sampling.sample` does. Without
        shift_terminal its last time would be 1 / 1000; with it at K = 1, the times would be NaN.
        None if the generator does not start from pure noise, or has a shift or other noise.
        """
        if (t_init, noise, self.schedule.shift) != (TIMESTEPS - 1, "fresh", 1.0):
            return None
        if self.gives_times:
            scheduler = FlowMatchLCMScheduler()
            scheduler.register_to_config(**{NUM_STEPS_KEY: num_steps})
            return scheduler
        return FlowMatchLCMScheduler(shift_terminal=1 / num_steps if num_steps > 1 else None)


def latent_side(
    side: int | None, factor: int, resolution: int | None, patch: int, most: int | None, option: str
) -> int:
    """Return the latents' height and width, a multiple of the network's patches.

    Args:
        side: The side in the network's configuration.
        factor: Image pixels per latent pixel.
        resolution: Pixels per side of an image; by default those of `side`.
        patch: Latent pixels per patch.
        most: The largest side that the network's position embedding has; None for any.
        option: The option of the resolution, for messages.

    Raises:
        UsageError: If the network cannot take the resolution.
    """
    if resolution is None:
        if side is None:
            raise UsageError(
                f"--{option} is missing: the config of this teacher's network has no sample_size. "
                "Give the pixels per side of an image, for example 1024."
            )
        return side
    multiple = factor * patch
    if resolution < multiple or resolution % multiple:
        raise UsageError(
            f"--{option}: {resolution} pixels do not fit this teacher's autoencoder (factor "
            f"{factor}) and patches of {patch}. Use a positive multiple of {multiple}."
        )
    if most is not None and resolution > most * factor:
        raise UsageError(
            f"--{option}: {resolution} pixels are more than this teacher's position embedding has. "
            f"Use at most {most * factor}."
        )
    return resolution // factor
