"""The Gradio page of `app`: images of a student and its teacher side by side."""

import html
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import gradio as gr

from sid_lsg.app.panels import (
    MOST_CHARACTERS,
    MOST_GUIDANCE,
    MOST_IMAGES,
    MOST_SEED,
    MOST_STEPS,
    MOST_TEACHER_STEPS,
    Shot,
    check_number,
    check_prompt,
    show_cuts,
    show_shots,
    take,
)
from sid_lsg.generation.models import AtSettings, ImageModel
from sid_lsg.messages.errors import UsageError

_TEACHER_STEPS, _TEACHER_GUIDANCE = 25, 1.5  # initial values

THEME = gr.themes.Default(  # with system fonts, so that nothing is downloaded
    primary_hue="indigo",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
)

CSS = """
.gradio-container { max-width: 1180px !important; margin: auto; }
.sid-notice { margin: .4em 0; padding: .6em .9em; border-left: 4px solid #d97706;
  background: color-mix(in srgb, #d97706 12%, transparent); overflow-wrap: anywhere; }
.sid-panel { padding: 1em 1.2em; border: 1px solid var(--border-color-primary);
  border-radius: var(--radius-lg); background: var(--block-background-fill); }
.sid-panel h3 { margin: 0; }
.sid-panel p { margin: .2em 0; }
.sid-shots { display: flex; flex-wrap: wrap; gap: 16px; margin-top: .8em; }
.sid-shots figure { margin: 0; max-width: 100%; }
.sid-shots img { display: block; max-width: 100%; }
.sid-shots img.sid-pixels { image-rendering: pixelated; }
.sid-shots figcaption { display: flex; gap: .7em; font-size: .8em; }
.sid-shots figcaption a { margin-left: auto; }
"""


def build_page(
    student: AtSettings,
    teacher: AtSettings | None,
    guidance: float | None,
    num_steps: int | None,
    examples: Sequence[str],
    run: Callable[[Callable[[], Shot]], Shot],
) -> gr.Blocks:
    """Build the page.

    Args:
        student: The model to try.
        teacher: The model to compare with, if any.
        guidance: The student's guidance scale; None for a generator.
        num_steps: Initial number of the student's steps; by default the model's.
        examples: Prompts to choose from.
        run: Calls a function in the main thread and returns its result.
    """
    first = student(num_steps, guidance)
    first_steps = first.about["num_steps"]
    most_steps = max(MOST_STEPS, first_steps)

    def models_for(steps: object, teacher_steps: object, scale: object) -> dict[str, ImageModel]:
        steps = check_number("The student's steps", steps, 1, most_steps)
        models = {"student": student(int(steps), guidance)}
        if teacher is not None:
            number = check_number("The teacher's steps", teacher_steps, 1, MOST_TEACHER_STEPS)
            kappa = check_number("The teacher's guidance", scale, 1, MOST_GUIDANCE, whole=False)
            models["teacher"] = teacher(int(number), kappa)
        return models

    def make(
        prompt: str,
        seed: float,
        images: float,
        steps: float,
        teacher_steps: float = _TEACHER_STEPS,
        teacher_guidance: float = _TEACHER_GUIDANCE,
    ) -> Iterator[list[str]]:
        """Sample images one by one, the student's first, and show each when it is finished."""
        try:
            text = check_prompt(prompt)
            total = int(check_number("Images", images, 1, MOST_IMAGES))
            start = int(check_number("Seed", seed, 0, MOST_SEED + 1 - total))
            models = models_for(steps, teacher_steps, teacher_guidance)
            shown = {"notice": show_cuts(models, text)}
            shown |= {name: show_shots(name, models[name], [], total) for name in models}
            yield list(shown.values())
            each = None
            for name, model in models.items():
                shots: list[Shot] = []
                for number in range(start, start + total):
                    shots.append(run(partial(take, model, text, number)))
                    shown[name] = show_shots(name, model, shots, total, each)
                    yield list(shown.values())
                each = sum(shot.seconds for shot in shots) / total
        except UsageError as error:
            raise gr.Error(html.escape(str(error), quote=False), print_exception=False) from None

    with gr.Blocks(title="SiD-LSG: try the generator", analytics_enabled=False) as page:
        gr.Markdown(
            _introduction(first, teacher(_TEACHER_STEPS, _TEACHER_GUIDANCE) if teacher else None)
        )
        with gr.Row(equal_height=True):
            prompt = gr.Textbox(
                label="Prompt",
                placeholder="Describe the image",
                elem_id="prompt",
                scale=5,
                max_lines=4,
                max_length=MOST_CHARACTERS,
            )
            button = gr.Button("Generate", variant="primary", elem_id="generate", min_width=120)
            stop = gr.Button("Stop", min_width=80, scale=0)
        gr.Examples([[text] for text in examples], [prompt], label="Examples", cache_examples=False)
        with gr.Row(equal_height=True):
            seed = gr.Number(0, label="Seed of the first image", precision=0, elem_id="seed")
            another = gr.Button("Another seed", min_width=170, scale=0)
            images = _slider("Images", 1, MOST_IMAGES, 4)
        with gr.Row():
            fields = [prompt, seed, images, _slider("Student's steps", 1, most_steps, first_steps)]
            if teacher is not None:
                fields += [
                    _slider("Teacher's steps", 1, MOST_TEACHER_STEPS, _TEACHER_STEPS),
                    _slider("Teacher's guidance", 1, MOST_GUIDANCE, _TEACHER_GUIDANCE, step=0.1),
                ]
        notice = gr.HTML(elem_id="notice")
        with gr.Row():
            names = ("student", "teacher") if teacher else ("student",)
            panels = [gr.HTML(elem_id=name, min_width=320) for name in names]
        made = gr.on(
            [button.click, prompt.submit],
            make,
            fields,
            [notice, *panels],
            preprocess=False,  # `make` checks the fields and names them in messages
            show_progress="minimal",
            show_progress_on=notice,
            api_name="generate",
        )
        stop.click(None, cancels=[made])
        another.click(
            lambda: random.randrange(MOST_SEED + 1 - MOST_IMAGES),
            None,
            seed,
            api_visibility="private",
        )
    return page.queue(default_concurrency_limit=1, max_size=16)


def _slider(label: str, least: float, most: float, value: float, step: float = 1) -> gr.Slider:
    """Make a slider with its label in lower case as element id."""
    name = label.lower().replace("'s ", "-")
    return gr.Slider(least, most, value, step=step, label=label, elem_id=name, buttons=[])


def _introduction(student: ImageModel, teacher: ImageModel | None) -> str:
    """Return the introduction in Markdown."""
    text = (
        "# SiD-LSG: one step from noise to image\n"
        "The **student** generates an image with one network evaluation (more steps are "
        f"possible): `{student.about['model']}`."
    )
    if teacher:
        text += (
            f" The **teacher** (`{teacher.about['model']}`) is the diffusion model from which it "
            "was distilled; it needs many network evaluations. For the same seed, both start from "
            "the same noise. Images are generated one at a time, so their times are comparable."
        )
    return text
