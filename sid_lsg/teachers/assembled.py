"""Load a model as separate parts from a diffusers folder, or make the parts with random weights."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, ClassVar, Self

import torch
from diffusers import ModelMixin
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from sid_lsg.files.loading import explained, load_network
from sid_lsg.files.sources import ARCHITECTURE, locate
from sid_lsg.files.weight_by_weight import load_weight_by_weight
from sid_lsg.messages.errors import UsageError
from sid_lsg.method.conditioning import Conditioning, expand
from sid_lsg.teachers.autoencoder import decode, encode, foreign_scale
from sid_lsg.teachers.base import Teacher
from sid_lsg.teachers.checks import Fields, refuse_problem
from sid_lsg.teachers.configs import config_problem
from sid_lsg.teachers.layout import locate_parts
from sid_lsg.teachers.precision import FLOAT32, Dtypes, linear_layers
from sid_lsg.teachers.tokenizers import tokenizers_problem
from sid_lsg.teachers.untrained import Architecture, configured, untrained


class AssembledTeacher(Teacher):
    """A teacher that is made of the parts in the subfolders of a diffusers folder.

    A subclass takes the parts as arguments of `__init__`, by name, and `resolution` and `option`.

    Attributes:
        family: The family's name, for messages.
        example: A Hub id of the family, for messages.
        pipeline_class: The family's pipeline in diffusers.
        parts: The classes of the parts, by their subfolders.
        optional: Parts that a model may lack; `__init__` then does not get them.
        fields: The configuration fields that the networks may have, by their subfolders.
        architectures: The family's untrained models.
        vae_scale: `scaling_factor` of the family's published autoencoders; None if unknown.
    """

    family: ClassVar[str]
    example: ClassVar[str | None] = None
    pipeline_class: ClassVar[Any]
    parts: ClassVar[Mapping[str, type]]
    optional: ClassVar[tuple[str, ...]] = ()
    fields: ClassVar[Mapping[str, Fields]] = {}
    architectures: ClassVar[Mapping[str, Architecture]] = {}
    vae_scale: ClassVar[float | None] = None
    vae: Any
    text_encoder: Any
    tokenizer: Any

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        revision: str | None = None,
        variant: str | None = None,
        subfolders: Mapping[str, str] | None = None,
        resolution: int | None = None,
        option: str = "model.teacher",
        dtypes: Dtypes = FLOAT32,
    ) -> Self:
        """Load a folder or Hub id in the family's layout.

        The arguments and errors are those of `families.load`.
        """
        source, where, index = cls._locate(model, subfolders, option, revision)
        remedy = (
            f"Give a folder in {cls.family}'s diffusers layout with safetensors weights, or a Hub "
            "id that this machine can reach."
        )

        def load(name: str, dtype: torch.dtype | None = torch.float32) -> Any:
            kind, place = cls.parts[name], where[name]
            with explained(f"--{option}: could not load the {name} of {model!r}", remedy):
                if dtype is None and name.startswith("text_encoder"):
                    return configured({name: kind}, source, where, revision)[name]
                return load_part(kind, source, place, revision, variant, dtype)

        cls.check_configs(model, where, revision, option)
        loaded = cls.settings(index)
        # Networks come last, since they take longest.
        order = sorted(where, key=lambda name: issubclass(cls.parts[name], nn.Module))
        # Under another default device, transformers would require `accelerate`.
        with torch.device("cpu"):
            loaded |= {name: load(name, cls._dtype(name, dtypes)) for name in order}
            refuse_problem(tokenizers_problem(loaded), option, cls.family, cls.example)
            teacher = cls(**loaded, resolution=resolution, option=option)
        if cls.vae_scale and (doubt := foreign_scale(teacher.vae.config, cls.vae_scale)):
            rank_zero_warn(f"--{option}: {doubt}.")
        teacher.load_again = load
        return teacher

    @classmethod
    def outline(
        cls,
        model: str,
        revision: str | None = None,
        subfolders: Mapping[str, str] | None = None,
        resolution: int | None = None,
        option: str = "model.teacher",
    ) -> Self:
        """Make the model of a folder or Hub id on the meta device, from its configuration files."""
        source, where, index = cls._locate(model, subfolders, option, revision)
        cls.check_configs(model, where, revision, option)
        names = ", ".join(cls.architectures)
        remedy = f"Give its folder, or {ARCHITECTURE}NAME with one of {names}."
        with explained(f"--{option}: could not read the configuration of {model!r}", remedy):
            parts = configured({n: cls.parts[n] for n in where}, source, where, revision)
            parts |= cls.settings(index)
        return cls(**parts, resolution=resolution, option=option).to("meta")

    @classmethod
    def build(
        cls,
        name: str,
        device: str | torch.device | None = None,
        resolution: int | None = None,
        seed: int = 0,
        option: str = "model.teacher",
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Make one of `architectures` with random weights, at its usual resolution by default."""
        device = device or torch.get_default_device()
        made, dtypes = cls.architectures[name], {cls.network_name: dtype}
        parts = untrained(made, device, seed, dtypes)
        teacher = cls(**parts, resolution=resolution, option=option).to(device)
        teacher.load_again = lambda part: untrained(made, device, seed)[part]
        return teacher

    @classmethod
    def _dtype(cls, part: str, dtypes: Dtypes) -> torch.dtype | None:
        """Return the dtype in which a part is loaded."""
        text = dtypes.text if part.startswith("text_encoder") else torch.float32
        return dtypes.network if part == cls.network_name else text

    @classmethod
    def settings(cls, index: Mapping[str, Any]) -> dict[str, Any]:
        """Return further arguments of `__init__` from a model's index; by default none."""
        return {}

    @classmethod
    def check_configs(
        cls,
        model: str,
        where: Mapping[str, str] | None = None,
        revision: str | None = None,
        option: str = "model.teacher",
        index: Mapping[str, Any] | None = None,
    ) -> None:
        """Check the parts' classes and fields; the arguments and errors are those of `Teacher`."""
        source = locate(model)
        for name, kind in cls.parts.items():
            if where is not None and name not in where:  # optional
                continue
            named = (index or {}).get(name)
            other = isinstance(named, list) and named[-1] != kind.__name__
            if other and issubclass(kind, nn.Module):
                continue
            folder, fields = (where or {}).get(name, name), cls.fields.get(name)
            problem = config_problem(source, folder, revision, name, kind, fields)
            refuse_problem(problem, option, cls.family, cls.example)

    @classmethod
    def _locate(
        cls, model: str, subfolders: Mapping[str, str] | None, option: str, revision: str | None
    ) -> tuple[str, dict[str, str], dict[str, Any]]:
        names = cls.family, cls.pipeline_class.__name__
        parts = tuple(cls.parts)
        return locate_parts(
            model, parts, subfolders, option, *names, revision, optional=cls.optional
        )

    # ------------------------------------------------------------------ networks

    @abstractmethod
    def arguments(self, condition: Conditioning, dtype: torch.dtype) -> dict[str, Any]:
        """Return conditioning as arguments of the network, for inputs of a dtype."""

    def predict(
        self, network: nn.Module, x_t: Tensor, t: Tensor, condition: Conditioning
    ) -> Tensor:
        """Call the network once, in the precision of its weights; its time keeps its dtype."""
        with self.precision_of(network) as dtype:
            named = self.arguments(condition, dtype) | self.size_arguments(x_t, condition)
            time = self.schedule.network_time(t)
            given = self.network_input(x_t.to(dtype))
            output = self.call(network, given, time, named)
            return self.network_output(output, x_t).to(x_t.dtype)

    def call(self, network: nn.Module, given: Any, time: Tensor, named: Mapping[str, Any]) -> Any:
        """Call the network with its input, time and other arguments."""
        return network(given, timestep=time, return_dict=False, **named)[0]

    def size_arguments(self, x_t: Tensor, condition: Conditioning) -> dict[str, Any]:
        """Return arguments of the network that depend on the latents' size; by default none."""
        return {}

    def network_input(self, x_t: Tensor) -> Any:
        """Return latents [B, C, H, W] as the network takes them; by default unchanged."""
        return x_t

    def network_output(self, output: Any, x_t: Tensor) -> Tensor:
        """Return the network's output as a prediction at `x_t`; by default unchanged."""
        found: Tensor = output
        return found

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents with the autoencoder's scale and shift: float32, not clipped."""
        return decode(self.vae, latents)

    def encode_images(self, images: Tensor) -> Tensor:
        """Encode images, the inverse of `decode`; the mean of a posterior, not a sample."""
        return encode(self.vae, images)

    def unpacked(self, latents: Tensor, shape: Sequence[int]) -> Tensor:
        """Return latents in the layout of the pipeline's scheduler as [B, C, H, W].

        Args:
            latents: The latents; by default they already are.
            shape: (C, H, W).
        """
        return latents

    def packed(self, latents: Tensor) -> Tensor:
        """Return latents [B, C, H, W] in the layout of the pipeline's scheduler."""
        return latents

    # ------------------------------------------------------------------ diffusers

    @property
    def tokenizers(self) -> dict[str, Any]:
        """Return the tokenizers by subfolder; by default the one."""
        return {"tokenizer": self.tokenizer}

    def other_parts(self) -> dict[str, Any]:
        """Return the pipeline's parts besides network, scheduler, autoencoder and tokenizers.

        By default the one text encoder.
        """
        return {"text_encoder": self.text_encoder}

    def pipeline(self, network: nn.Module, scheduler: Any) -> Any:
        """Make a stock pipeline from a network, a scheduler and the teacher's other parts."""
        own = {self.network_name: network, "scheduler": scheduler, "vae": self.vae}
        pipeline = self.pipeline_class(**own | self.tokenizers | self.other_parts())
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    # ------------------------------------------------------------------ sampling the teacher

    @abstractmethod
    def embeddings(self, condition: Conditioning) -> dict[str, Any]:
        """Return conditioning as arguments of the pipeline: tensors, or lists of tensors."""

    @abstractmethod
    def reference_scheduler(self) -> Any:
        """Return the diffusers scheduler that `sample_reference` uses."""

    def reference_guidance(self, scale: float) -> dict[str, Any]:
        """Return the pipeline's arguments for a guidance scale."""
        return {"guidance_scale": scale}

    def pipeline_latents(self, output: Tensor) -> Tensor:
        """Return what the pipeline returns as latents as [B, C, H, W]; by default unchanged."""
        return output

    def reference_options(self) -> dict[str, Any]:
        """Return further arguments of the pipeline for `sample_reference`; by default the size."""
        height, width = self.image_size
        return {"height": height, "width": width}

    @torch.no_grad()
    def sample_reference(
        self, prompts: Sequence[str], seeds: Sequence[int], num_steps: int, guidance: float
    ) -> Tensor:
        """Sample the teacher in its diffusers pipeline, with `reference_scheduler`."""
        given = self.embeddings(self.encode_prompts(prompts))
        # Encoded again, because `null_condition` is cached in the precision of the training.
        null = self.embeddings(expand(self.encode_null(), len(prompts)))
        pipeline = self.pipeline(self.network, self.reference_scheduler())
        # Only of the network: the text is already encoded.
        with self.precision_of(self.network) as dtype:
            for name, part in pipeline.components.items():
                if name.startswith("text_encoder") and part is not None:
                    device = next(self.network.parameters()).device
                    setattr(pipeline, name, _Encoded(part.config, device, dtype))
            latents = pipeline(
                **_floats(given, dtype),
                **{f"negative_{name}": value for name, value in _floats(null, dtype).items()},
                num_inference_steps=num_steps,
                **self.reference_guidance(guidance),
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                output_type="latent",
                **self.reference_options(),
            ).images
        return self.decode(self.pipeline_latents(latents))


def _floats(values: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Convert features to a dtype, and leave masks as they are."""

    def convert(value: Any) -> Any:
        if isinstance(value, list):
            return [convert(one) for one in value]
        return value.to(dtype) if value.is_floating_point() else value

    return {name: convert(value) for name, value in values.items()}


class _Encoded(nn.Module):
    """Stand in for a text encoder whose features are given.

    Pipelines convert features and latents to the text encoder's dtype, which would be wrong for
    an encoder in 16 bits.
    """

    def __init__(self, config: Any, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.device, self.dtype = config, device, dtype


def load_part(
    kind: Any,
    source: str,
    subfolder: str | None,
    revision: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype | None = torch.float32,
) -> Any:
    """Load a network, a tokenizer or a scheduler.

    Args:
        kind: Its class in diffusers or transformers.
        source: The model's folder or Hub id.
        subfolder: The part's subfolder; None if `source` is its folder.
        revision: Branch, tag or commit on the Hub.
        variant: Variant of the weight files.
        dtype: Dtype of a text encoder, or of a diffusers network's linear and convolution weights,
            whose other weights are float32. int8 rounds a text encoder's linear weights with
            bitsandbytes; its other weights are bfloat16. None leaves the weights of a diffusers
            network in their files.

    Raises:
        UsageError: If bitsandbytes or accelerate is missing.
    """
    if dtype != torch.float32 and issubclass(kind, ModelMixin):
        place = locate(source), subfolder or "", dtype, linear_layers, revision, variant
        return load_weight_by_weight(kind, *place)
    where = {"subfolder": subfolder, "revision": revision}
    if not issubclass(kind, nn.Module):
        return kind.from_pretrained(source, **where)
    options: dict[str, Any] = {"dtype": dtype}
    if dtype == torch.int8:
        options = _eight_bits()
    elif issubclass(kind, ModelMixin):
        # Without the second argument, diffusers warns if `accelerate` is not installed.
        options = {"torch_dtype": torch.float32, "low_cpu_mem_usage": False}
    return load_network(kind, source, **where, variant=variant, **options)


def _eight_bits() -> dict[str, Any]:
    """Return the arguments with which transformers loads a text encoder in 8 bits.

    It is loaded on the CPU, and moves to the device with the other networks.
    """
    missing = [name for name in ("bitsandbytes", "accelerate") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"--model.text.precision int8: {missing[0]} is not installed. Install it with pip "
            "install 'sid-lsg[eight-bit]', or use bf16."
        )
    return {
        "dtype": torch.bfloat16,
        "device_map": {"": "cpu"},
        "quantization_config": BitsAndBytesConfig(load_in_8bit=True),
    }
