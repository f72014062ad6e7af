"""Base classes of flow-matching teachers whose networks take any size, and packed latents."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from sid_lsg.method.guidance import EMBEDDED
from sid_lsg.teachers.flow import FlowTeacher, latent_side
from sid_lsg.teachers.packing import pack, unpack
from sid_lsg.teachers.precision import backbone

SIZE_KEY = "_sample_size"
"""In the network's configuration, which has no such field: latent pixels per side, if chosen."""

_PIXELS = 1024  # the pipelines' default


class UnsizedTeacher(FlowTeacher):
    """A teacher whose network has no size of its own, and whose pipeline sets the times itself.

    Attributes:
        pipeline_scale: The pipeline's arguments for a generator, which is not guided.
    """

    gives_times = True
    hands_generator_on = False
    pipeline_scale: ClassVar[Mapping[str, Any]] = {"guidance_scale": 1}

    def set_size(
        self, channels: int, factor: int, patch: int, resolution: int | None, option: str
    ) -> None:
        """Choose the size of latents and images, which the exported network keeps.

        By default it is the network's, if it was exported, or the autoencoder's, or 1024 pixels.

        Args:
            channels: Channels of a latent.
            factor: Image pixels per latent pixel.
            patch: Latent pixels per patch.
            resolution: Pixels per side of an image.
            option: The option of the resolution, for messages.

        Raises:
            UsageError: If the network cannot take the resolution.
        """
        network: Any = self.network
        side = latent_side(self._usual_side(factor), factor, resolution, patch, None, option)
        self.latent_shape = (channels, side, side)
        self.image_size = (side * factor, side * factor)
        if resolution is not None:
            network.register_to_config(**{SIZE_KEY: side})
        self.pipeline_options = {**self.pipeline_scale, **self.reference_options()}

    def _usual_side(self, factor: int) -> int:
        network, vae = self.network, self.vae.config
        config: Any = network.config
        if side := config.get(SIZE_KEY):
            return int(side)
        known = "sample_size" in vae and "sample_size" not in vae.get("_use_default_values", ())
        return int(vae.sample_size if known else _PIXELS) // factor


class PackedTeacher(UnsizedTeacher):
    """A teacher whose network takes and returns tokens of 2 x 2 patches of latents.

    Attributes:
        embedding_scale: What the network multiplies its time and guidance scale by before it embeds
            them.
    """

    embedding_scale: ClassVar[float] = 1

    def call(self, network: nn.Module, given: Any, time: Tensor, named: Mapping[str, Any]) -> Any:
        """Call the network, and let it embed its time and guidance scale in float32.

        By itself it rounds them to the dtype of its tokens, which has 16 bits in mixed precision.
        """
        numbers = [n * self.embedding_scale for n in (time, named.get(EMBEDDED)) if n is not None]
        embedding: Any = backbone(network).time_text_embed
        hook = embedding.register_forward_pre_hook(
            lambda _, rounded: (*numbers, *rounded[len(numbers) :])
        )
        try:
            return super().call(network, given, time, named)
        finally:
            hook.remove()

    def network_input(self, x_t: Tensor) -> Tensor:
        """Return the tokens of latents."""
        return pack(x_t)

    def network_output(self, output: Tensor, x_t: Tensor) -> Tensor:
        """Return the latents of tokens."""
        return unpack(output, x_t.shape[1:])

    def packed(self, latents: Tensor) -> Tensor:
        """Return the pipeline's tokens of latents."""
        return pack(latents)

    def unpacked(self, latents: Tensor, shape: Sequence[int]) -> Tensor:
        """Return the latents of the pipeline's tokens."""
        return unpack(latents, shape)

    def pipeline_latents(self, output: Tensor) -> Tensor:
        """Return the latents of the tokens that the pipeline returns."""
        return unpack(output, self.latent_shape)
