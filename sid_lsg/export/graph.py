"""Export a generator as one ONNX graph from noise and tokens to images."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from sid_lsg.export.folder import save_tokenizer
from sid_lsg.messages.errors import UsageError
from sid_lsg.method.sampling import seeded_noises
from sid_lsg.teachers.base import Teacher

GRAPH = "generator.onnx"
_TOKENS = "input_ids"
_PROMPTS, _SEEDS = ["a lighthouse at dawn", ""], [0, 1]  # inputs of the tracing and of the check
_TOLERANCE = 1 / 255  # of an image in [-1, 1]: half a grey level


class Generator(nn.Module):
    """Map noise and tokens to images in K steps.

    Computes the same as `Teacher.sample` and `decode`. Its timesteps do not depend on the batch, so
    that the graph accepts any batch size.
    """

    def __init__(self, teacher: Teacher, t_init: int, num_steps: int) -> None:
        super().__init__()
        self.teacher = teacher
        self.times = teacher.schedule.generator_times(t_init, num_steps)

    def forward(self, noise: Tensor, input_ids: Tensor) -> Tensor:
        """Generate images.

        Args:
            noise: Standard normal float32, [B, C, H, W]; for several steps [B, K, C, H, W].
            input_ids: [B, L] int64.

        Returns:
            Images [B, 3, H, W] float32, nominally in [-1, 1].
        """
        teacher, schedule = self.teacher, self.teacher.schedule
        condition = teacher.encode({_TOKENS: input_ids})
        noises = noise.unbind(1) if noise.dim() == 5 else (noise,)
        x_g = torch.zeros_like(noises[0])
        for z, time in zip(noises, self.times, strict=True):
            t = torch.tensor([time], dtype=schedule.time_dtype)
            x_t = schedule.add_noise(x_g, z, t)
            x_g = schedule.x0(teacher.predict(teacher.network, x_t, t, condition), x_t, t)
        return teacher.decode(x_g)


def check_installed() -> None:
    """Check that the packages for the ONNX export are installed.

    Raises:
        UsageError: If one is missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"--format onnx needs {error.name}: pip install 'sid-lsg[onnx]'."
        ) from error


@torch.no_grad()
def save_graph(teacher: Teacher, folder: Path, t_init: int, num_steps: int) -> None:
    """Write generator.onnx, its weights in a separate file, and the tokenizer.

    Args:
        teacher: A teacher with the generator as its network, on the CPU, in float32.
        folder: The folder to write; created if missing.
        t_init: The first timestep.
        num_steps: K.

    Raises:
        UsageError: If the teacher's prompts are not the `input_ids` of a single tokenizer.
    """
    if [*teacher.tokenize(_PROMPTS)] != [_TOKENS] or len(teacher.tokenizers) != 1:
        raise UsageError(
            f"--format onnx: {type(teacher).__name__} does not read prompts as the ids of one "
            "tokenizer. Use --format diffusers."
        )
    folder.mkdir(parents=True, exist_ok=True)
    # From 64 images on, diffusers makes tensors contiguous, which changes no number. Tracing would
    # reject this branch if the batch were not bounded. The graph itself has no bound.
    batch = {0: Dim("batch", max=63)}
    with _quiet():
        program = torch.onnx.export(
            Generator(teacher, t_init, num_steps).eval(),
            _example(teacher, num_steps),
            dynamo=True,
            input_names=["noise", "input_ids"],
            output_names=["image"],
            dynamic_shapes={"noise": batch, "input_ids": batch},
            verbose=False,
        )
        assert program is not None
        for part in (program.model.graph, *program.model.graph):
            part.metadata_props.clear()  # it contains local paths
        program.save(folder / GRAPH, external_data=True)
    for name, tokenizer in teacher.tokenizers.items():
        save_tokenizer(tokenizer, folder / name)


def check_graph(teacher: Teacher, folder: Path, t_init: int, num_steps: int) -> float:
    """Compare two images of the graph in onnxruntime with those of `Teacher.generate`.

    Returns:
        The largest difference of pixels in [-1, 1].

    Raises:
        UsageError: If the difference exceeds half a grey level.
    """
    noise, input_ids = _example(teacher, num_steps)
    latents = teacher.generate(teacher.network, _PROMPTS, _SEEDS, t_init, num_steps)
    difference = float((run_graph(folder, noise, input_ids) - teacher.decode(latents)).abs().max())
    if not difference <= _TOLERANCE:
        raise UsageError(
            f"--format onnx: onnxruntime's images differ from PyTorch's by {difference:.2g}, more "
            f"than {_TOLERANCE:.2g} (their range is [-1, 1]). Use other versions of torch, onnx "
            "and onnxruntime, or --format diffusers."
        )
    return difference


def run_graph(folder: Path, noise: Tensor, input_ids: Tensor) -> Tensor:
    """Run an exported graph in onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / GRAPH, providers=["CPUExecutionProvider"])
    (images,) = session.run(None, {"noise": noise.numpy(), "input_ids": input_ids.numpy()})
    return torch.from_numpy(images)


def _example(teacher: Teacher, num_steps: int) -> tuple[Tensor, Tensor]:
    """Make the graph's inputs for two images."""
    noises = torch.stack(seeded_noises(_SEEDS, teacher.latent_shape, num_steps), dim=1)
    input_ids = teacher.tokenize(_PROMPTS)[_TOKENS]
    return (noises if num_steps > 1 else noises[:, 0]), input_ids


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's progress, warnings and hints about optional packages."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
