"""What flow-matching teachers share: a transformer, real times, and diffusers' flow schedulers."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler
from torch import Tensor, nn

from sid_lsg.messages.errors import UsageError
from sid_lsg.method.choices import Noise
from sid_lsg.method.conditioning import Conditioning, expand
from sid_lsg.method.flow import TIMESTEPS, FlowSchedule
from sid_lsg.teachers.assembled import AssembledTeacher


class FlowTeacher(AssembledTeacher):
    """A latent flow-matching model with a transformer that predicts the velocity."""

    network_name = "transformer"
    pipeline_options: Mapping[str, Any] = {"guidance_scale": 1}
    logit_limit = 10.0  # SiD-DiT
    schedule: FlowSchedule

    @abstractmethod
    def arguments(self, condition: Conditioning, dtype: torch.dtype) -> dict[str, Any]:
        """Return conditioning as arguments of the network, for inputs of a dtype."""

    @abstractmethod
    def embeddings(self, condition: Conditioning) -> dict[str, Tensor]:
        """Return conditioning as arguments of the pipeline."""

    def reference_scheduler(self) -> Any:
        """Return the diffusers scheduler that `sample_reference` uses: Euler, with its shift."""
        return FlowMatchEulerDiscreteScheduler.from_config(self.scheduler_config)

    def reference_options(self) -> dict[str, Any]:
        """Return further arguments of the pipeline for `sample_reference`; by default the size."""
        height, width = self.image_size
        return {"height": height, "width": width}

    def predict(
        self, network: nn.Module, x_t: Tensor, t: Tensor, condition: Conditioning
    ) -> Tensor:
        """Call the network once, in the precision of its weights; its time stays in float32."""
        with self.precision_of(network) as dtype:
            named = self.arguments(condition, dtype)
            time = self.schedule.network_time(t)
            output = network(x_t.to(dtype), timestep=time, return_dict=False, **named)[0]
            return output.to(x_t.dtype)

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
        return FlowMatchLCMScheduler(shift_terminal=1 / num_steps if num_steps > 1 else None)

    @torch.no_grad()
    def sample_reference(
        self, prompts: Sequence[str], seeds: Sequence[int], num_steps: int, guidance: float
    ) -> Tensor:
        """Sample the teacher in its diffusers pipeline, with `reference_scheduler`."""
        given = self.embeddings(self.encode_prompts(prompts))
        # Encoded again, because `null_condition` is cached in the precision of the training.
        null = self.embeddings(expand(self.encode_null(), len(prompts)))
        with self.precision_of(self.network):  # only of the network: the text is already encoded
            latents = self.pipeline(self.network, self.reference_scheduler())(
                **given,
                **{f"negative_{name}": value for name, value in null.items()},
                num_inference_steps=num_steps,
                guidance_scale=guidance,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                output_type="latent",
                **self.reference_options(),
            ).images
        return self.decode(latents)


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
