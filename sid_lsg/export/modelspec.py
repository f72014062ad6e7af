"""Describe a file of weights by the `modelspec` keys that tools show."""

from sid_lsg.export.facts import Facts

_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}


def modelspec(facts: Facts, architecture: str) -> dict[str, str]:
    """Return a file's metadata: the keys of modelspec 1.0, and how the generator was made.

    Args:
        facts: The facts about the generator.
        architecture: Its architecture, with `/lora` for adapters.
    """
    height, width = facts.size
    of = f" of {facts.teacher}" if facts.teacher else ""
    spec = {
        "sai_model_spec": "1.0.0",
        "architecture": architecture,
        "implementation": "diffusers",
        "title": f"SiD-LSG{of}, {facts.steps}",
        "description": "A text-to-image generator, distilled by Guided Score identity Distillation",
        "resolution": f"{width}x{height}",
        "timestep_range": f"0,{facts.t_init}",
        "usage_hint": f"Sample in {facts.steps}, from timestep {facts.t_init}, without guidance "
        "(CFG 1) or a negative prompt.",
        "tags": "sid-lsg, one-step" if facts.num_steps == 1 else "sid-lsg, few-step",
    }
    if facts.prediction_type in _PREDICTIONS:
        spec["prediction_type"] = _PREDICTIONS[facts.prediction_type]
    if facts.license:
        spec["license"] = facts.license
    metadata = {f"modelspec.{key}": value for key, value in spec.items()}
    metadata["sid_lsg.num_steps"] = str(facts.num_steps)
    metadata["sid_lsg.t_init"] = str(facts.t_init)
    if (kappas := facts.kappas) is not None:
        metadata["sid_lsg.kappas"] = ", ".join(f"{kappa:g}" for kappa in kappas)
    return metadata
