"""Compare with the official code's numbers for flow-matching teachers, in `--golden-flow DIR`.

Every file of a registered family is compared: iterations (case, gan, traj) run through a real
Trainer, with the recorded random numbers. `*_stock_*` are recorded calls of diffusers' pipelines.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sid_lsg.data.real_images import RealBatch
from sid_lsg.method.conditioning import expand, select
from sid_lsg.method.draws import REAL_IMAGES, Phase
from sid_lsg.method.flow import FlowSchedule
from sid_lsg.method.guidance import EMBEDDED, Guiding, predict_guided
from sid_lsg.method.phases import PhaseInputs
from sid_lsg.method.sampling import denoiser, sample
from sid_lsg.method.weighting import loss_divisor
from sid_lsg.options.real_data import RealData
from sid_lsg.options.training import Gradients
from sid_lsg.training.alternating import frozen
from tests.helpers.golden import error, fingerprint
from tests.helpers.golden_flow import (
    LOSS,
    LOSS_TRAJECTORY,
    MOVED,
    OUTPUT,
    GoldenFlow,
    check_gradients,
    close,
    flattened,
    noises,
    recorded_condition,
)
from tests.helpers.golden_flow_runs import (
    SHIFT,
    check_outputs,
    drawn,
    made,
    magnitude,
    prepared,
    train,
)

KINDS = {
    "case": ("*_case_*",),
    "sampler": ("*_sampler*",),
    "denoise": ("*_denoise*",),
    "text": ("*_text*",),
    "weightings": ("*_weightings*",),
    "gan": ("*_gan*",),
    "trajectory": ("*_traj*",),
    "stock": ("*_stock_*",),
}
NO_TARGETS = ("flux_case_zerocfg",)  # a slip of the official code, as the index says


@pytest.fixture(scope="session")
def golden(pytestconfig: pytest.Config) -> GoldenFlow:
    return GoldenFlow(pytestconfig.getoption("golden_flow"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    root: Path = metafunc.config.getoption("golden_flow")
    found = GoldenFlow(root)
    for kind, patterns in KINDS.items():
        if kind in metafunc.fixturenames:
            names = [name for name in found.names(*patterns) if name not in NO_TARGETS]
            if kind == "trajectory":
                names = [name for name in names if not name.endswith(("inputs", "start"))]
            metafunc.parametrize(kind, names)


def test_case(golden: GoldenFlow, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, expected = golden.entry(case), golden.tensors(case)
    module, prompts = prepared(golden, entry)
    train(module, prompts, monkeypatch)
    check_outputs(module, entry, expected)
    names = golden.index["param_names"][entry["family"]]
    scale, batch = entry.get("loss_scaling", 1.0), entry["batch"]
    loss = scale * float(module.output("fake", "losses").double().sum()) / batch
    assert loss == pytest.approx(entry["phase1_loss"], rel=LOSS)
    check_gradients(names, module.gradients["fake"][0], expected, "phase1.", scale)
    factor = entry.get("loss_scaling_G", 1.0)
    loss = factor * float(module.output("g", "losses").double().sum()) / batch
    # The loss is a small difference of large terms, whose size sets its error.
    assert abs(loss - entry["phase2_loss"]) < LOSS * factor * magnitude(module, entry)
    check_gradients(names, module.gradients["g"][0], expected, "phase2.")


def test_gan(golden: GoldenFlow, gan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The adversarial term, with real latents that share noise and time with generated ones."""
    entry, expected = golden.entry(gan), golden.tensors(gan)
    size, batch = expected["real.latents"][0].numel(), entry["batch"]
    factor, mix = entry["loss_scaling_G"], 0.5
    weights = entry["loss_scaling_D"] * size, entry["loss_scaling_G_gan"] / factor
    module, prompts = prepared(
        golden,
        entry,
        real_data=RealData(*weights),
        gradients=Gradients(generator_scale=mix * factor),
    )
    assert module.discriminator is not None
    module.discriminator.encode = lambda images: expected["real.latents"]  # type: ignore[assignment]
    module.real = {"prompt_embeds": expected["real.prompt_embeds"]}
    module.draws[REAL_IMAGES] = module.draws[Phase.FAKE_SCORE]
    images = torch.zeros(batch, 3, *module.teacher.image_size, dtype=torch.uint8)
    train(module, prompts, monkeypatch, RealBatch(images, entry["real_prompts"], {}))
    check_outputs(module, entry, expected)
    (fake,), (g,) = module.outputs["fake"], module.outputs["g"]
    term = weights[0] * fake.numbers["loss_adversarial_fake"]
    assert float(term.mean()) == pytest.approx(float(expected["phase1.loss_D"]), rel=LOSS)
    loss = float((fake.losses - term).mean())
    assert loss == pytest.approx(float(expected["phase1.loss_v"]), rel=LOSS)
    term = entry["loss_scaling_G_gan"] * size * g.numbers["loss_adversarial_generator"] / g.weight
    assert float(term.mean()) == pytest.approx(float(expected["phase2.loss_gan"]), rel=LOSS)
    loss = factor * float((g.losses - term / factor).mean())
    wanted = float(expected["phase2.loss_sid"])
    assert abs(loss - wanted) < LOSS * factor * magnitude(module, entry)
    for side in ("real", "fake"):
        limit = module.discriminator.limit
        logits = expected[f"phase1.logit_{side}"].clamp(-limit, limit).mean((1, 2))
        name = {"real": "logit_real", "fake": "logit_generated"}[side]
        close(fake.numbers[name], logits)
    names = golden.index["param_names"][entry["family"]]
    check_gradients(names, module.gradients["fake"][0], expected, "phase1.")
    check_gradients(names, module.gradients["g"][0], expected, "phase2.")


def test_trajectory(golden: GoldenFlow, trajectory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several iterations with Adam, each with its own k."""
    entry, expected = golden.entry(trajectory), golden.tensors(trajectory)
    module = made(golden, entry)
    recorded, start = golden.tensors(entry["inputs"]), golden.tensors(entry["start"])
    networks = {"fake": module.fake_score, "g": module.generator}
    with torch.no_grad():
        for name, network in networks.items():
            for parameter, value in network.named_parameters():
                value.copy_(start[f"{name}0.{parameter}"])
    module.ks = entry["ks"]
    module.draws = {
        phase: [drawn(recorded, f"it{i}.{name}.", k) for i, k in enumerate(module.ks)]
        for phase, name in ((Phase.FAKE_SCORE, "phase1"), (Phase.GENERATOR, "phase2"))
    }
    text = entry.get("text", f"{entry['family']}_text").split(" ")[0]
    train(module, golden.entry(text)["prompts"], monkeypatch)
    steps, factor = len(module.ks), entry.get("loss_scaling_G", 1.0)
    for name, scale in (("fake", entry.get("loss_scaling", 1.0)), ("g", factor)):
        losses = scale * module.output(name, "losses").double().view(steps, -1).mean(1)
        assert error(losses, expected[f"loss_{name}"]) < LOSS_TRAJECTORY
        moved = [
            (value - start[f"{name}0.{parameter}"]).detach()
            for parameter, value in networks[name].named_parameters()
        ]
        theirs = expected[f"{name}_moved_fingerprint"][:, 0]
        assert error(fingerprint(moved)[:, 0], theirs) < MOVED
        parameters = dict(networks[name].named_parameters())
        distance, size = 0.0, 0.0
        for key, final in expected.items():
            if (parameter := key.removeprefix(f"{name}_final.")) != key:
                change = final - start[f"{name}0.{parameter}"]
                distance += float((parameters[parameter] - final).double().square().sum())
                size += float(change.double().square().sum())
        assert distance**0.5 < MOVED * size**0.5


def test_weightings(golden: GoldenFlow, weightings: str) -> None:
    """The default case with each weighting of the generator's loss."""
    found, family = golden.tensors(weightings), golden.entry(weightings)["family"]
    entry = golden.entry(golden.entry(weightings).get("case", f"{family}_case_default"))
    module, prompts = prepared(golden, entry)
    module.on_fit_start()
    condition = module.teacher.encode_prompts(prompts)
    inputs = PhaseInputs(condition, module.draws[Phase.GENERATOR][0], len(prompts))
    names = golden.index["param_names"][family]
    for name in dict.fromkeys(key.split(".")[0] for key in found):
        module.recipe = module.recipe._replace(weighting=name)
        with frozen([*module.fake_score.parameters()]):
            output = module.generator_phase(inputs)
            module.generator.zero_grad()
            output.loss.backward()
        close(1 / output.weight, found[f"{name}.scale_factor"])
        module.outputs["g"] = [output]
        allowed = LOSS * entry["loss_scaling_G"] * magnitude(module, entry)
        assert abs(float(output.loss) - float(found[f"{name}.loss"])) < allowed
        gradients = [p.grad for p in module.generator.parameters() if p.grad is not None]
        last = len(found[f"{name}.grad_fingerprint"])
        check_gradients(names[-last:], gradients[-last:], found, f"{name}.")


def test_denoise(golden: GoldenFlow, denoise: str) -> None:
    """The teacher's guided velocity and estimate of x_0 at several scales."""
    family, expected = golden.entry(denoise)["family"], golden.tensors(denoise)
    teacher = golden.teacher(family)
    inputs, prompts = golden.tensors(f"{family}_inputs"), golden.entry(f"{family}_inputs")
    x_0, t = expected["x0"], inputs["phase1.sigma"]
    x_t = teacher.schedule.add_noise(x_0, inputs["phase2.noise"], t)
    condition = teacher.encode_prompts(prompts["prompts"])

    def predict(*args: Any) -> Tensor:
        return teacher.predict(teacher.network, *args)

    null = teacher.null_condition()
    for kappa in (float(key[7:]) for key in expected if key.startswith("v_kappa")):
        if kappa == 0 and teacher.embeds_guidance:
            # A slip of the official code: it evaluates the prompts, at the embedding of 0.
            (v,) = predict_guided(predict, x_t, t, condition, None, [1], Guiding(embedded=0.0))
        else:
            (v,) = predict_guided(predict, x_t, t, condition, null, [kappa])
        close(v, expected[f"v_kappa{kappa:g}"])
        close(teacher.schedule.x0(v, x_t, t), expected[f"x0_kappa{kappa:g}"])
    close(teacher.network_input(torch.cat((x_t, x_t))), expected["net_input"])
    close(teacher.schedule.network_time(torch.cat((t, t))), expected["net_timestep"])


def test_sampler(golden: GoldenFlow, sampler: str) -> None:
    """Samples, the network's inputs and times, and gradients of every recorded run."""
    entry, expected = golden.entry(sampler), golden.tensors(sampler)
    family, source = entry["family"], entry["inputs"].split(" ")
    teacher = golden.teacher(family)
    golden.load(entry["weights"], family, teacher.network)
    teacher.network.requires_grad_(True)
    inputs = golden.tensors(source[0])
    condition = teacher.encode_prompts(golden.entry(source[0])["prompts"])
    prefix = source[1].removesuffix("*") if len(source) > 1 else "phase1."
    seen: list[tuple[Tensor, Tensor, bool]] = []

    def keep(network: Any, args: Any, kwargs: Any) -> None:
        given = args[0] if args else kwargs["hidden_states"]
        seen.append((given.detach(), kwargs["timestep"], torch.is_grad_enabled()))

    teacher.network.register_forward_pre_hook(keep, with_kwargs=True)
    denoise = denoiser(lambda *a: teacher.predict(teacher.network, *a), teacher.schedule, condition)
    names = golden.index["param_names"][family]
    for name, run in entry["runs"].items():
        seen.clear()
        teacher.network.zero_grad()
        schedule = FlowSchedule(time_factor=teacher.schedule.time_factor)  # type: ignore[attr-defined]
        schedule.shift = run.get("shift", SHIFT if run.get("use_sd3_shift") else 1.0)
        first = run.get("init_timestep", 999)
        given = noises(inputs, prefix, run["k"])
        kind = run["noise_type"]
        x_g = sample(denoise, schedule, given, first, run["num_steps"], kind, "last")
        close(x_g, expected[f"{name}.x_g"])
        assert [trained for *_, trained in seen] == [False] * (run["k"] - 1) + [True]
        close(torch.stack([t for _, t, _ in seen]), expected[f"{name}.net_timesteps"])
        states = torch.stack([x for x, _, _ in seen])
        if (wanted := expected.get(f"{name}.net_inputs")) is not None:
            close(states, wanted)
        if run["train"]:
            (x_g * inputs["w"]).sum().backward()
            gradients = [p.grad for p in teacher.network.parameters()]
            check_gradients(names, gradients, expected, f"{name}.")
        elif run["k"] == run["num_steps"] and schedule.shift == 1:
            ours = teacher.sample(teacher.network, condition, given, first, kind)
            assert torch.equal(ours, x_g)


def test_text(golden: GoldenFlow, text: str) -> None:
    """Tokens and features of prompts and of the null prompt."""
    entry, expected = golden.entry(text), golden.tensors(text)
    teacher = golden.teacher(entry["family"])
    ours = teacher.encode_prompts(entry["prompts"])
    null = teacher.null_condition()
    for name, theirs in recorded_condition(expected).items():
        if name in ours:
            close(ours[name].to(theirs.dtype), theirs)
    for name, theirs in recorded_condition(expected, "null_").items():
        if name in ours:
            close(null[name].to(theirs.dtype), theirs)
    assert "encoder_hidden_states" in ours
    tokens = teacher.tokenize(entry["prompts"])
    for number, name in enumerate(("input_ids", "input_ids_2", "input_ids_3")):
        if (ids := expected.get(f"ids{number}")) is not None:
            assert torch.equal(tokens[name], ids)


def test_stock(golden: GoldenFlow, stock: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recorded call of the stock pipeline: features, predictions, samples, decoding."""
    entry, expected = golden.entry(stock), golden.tensors(stock)
    teacher: Any = golden.teacher(entry["family"], official_text=False)
    golden.resize(teacher, entry)
    prompts, scale = entry["prompts"], entry["guidance_scale"]
    ours, null = teacher.encode_prompts(prompts), expand(teacher.null_condition(), len(prompts))
    rows = len(expected["net.timestep"][0])
    doubled = rows == 2 * len(prompts)
    guiding = Guiding(rescale=teacher.rescale)
    if teacher.embeds_guidance:
        ours |= {EMBEDDED: torch.full_like(ours[EMBEDDED], scale)}
        guiding = Guiding(embedded=scale)
    x_t = torch.zeros(len(prompts), *teacher.latent_shape)
    told, untold = (
        flattened(teacher.arguments(c, torch.float32) | teacher.size_arguments(x_t, c))
        for c in (ours, null)
    )
    compared = 0
    for key, theirs in expected.items():
        if (name := key.removeprefix("net.")) in told:
            alone = not doubled or name in ("txt_ids", "img_ids")  # positions have no batch
            own = told[name] if alone else torch.cat((untold[name], told[name]))
            close(own.to(theirs.dtype), theirs)
            compared += 1
    assert compared, "no argument of the network was compared"

    def predict(*args: Any) -> Tensor:
        return teacher.predict(teacher.network, *args)

    factor = getattr(teacher.schedule, "time_factor", None)
    kappa = scale if doubled else 1
    count, shape = len(prompts), teacher.latent_shape
    for step in range(entry["steps"]):
        x = teacher.unpacked(expected["net.sample"][step][:count], shape)
        t = expected["net.timestep"][step][:count]
        t = t / factor if factor else t.long()
        if not factor and not torch.equal(t, expected["net.timestep"][step][:count]):
            continue  # a time between the teacher's
        untold_one = select(null, slice(1))
        (found,) = predict_guided(predict, x, t, ours, untold_one, [kappa], guiding)
        close(found, teacher.unpacked(expected["guided"][step], shape))
    latents = expected.get("latents_unpacked", expected["latents_after"][-1])
    decoded = teacher.decode(latents[: len(expected["decoded"])])
    stride = entry["decoded_stride"]
    close(decoded[..., ::stride, ::stride], expected["decoded"])
    # The same call through `sample_reference`, from the recorded noise.
    own = teacher.pipeline

    def from_noise(*parts: Any) -> Any:
        pipeline = own(*parts)

        class FromNoise(type(pipeline)):  # type: ignore[misc]
            def __call__(self, **options: Any) -> Any:
                return super().__call__(latents=expected["latents_in"].clone(), **options)

        pipeline.__class__ = FromNoise
        return pipeline

    monkeypatch.setattr(type(teacher), "pipeline", lambda self, *parts: from_noise(*parts))
    images = teacher.sample_reference(prompts, range(count), entry["steps"], scale)
    close(images[: len(decoded), :, ::stride, ::stride], expected["decoded"], 5 * OUTPUT)


def test_schedule(golden: GoldenFlow) -> None:
    expected, schedule = golden.tensors("schedule"), FlowSchedule()
    x_0, eps, v, t = (expected[name] for name in ("x0", "eps", "v_pred", "sigma"))
    x_t = schedule.add_noise(x_0, eps, t)
    close(x_t, expected["x_t"])
    close(schedule.x0(v, x_t, t), expected["x0_from_v"])
    drawn_times = torch.sigmoid(schedule.location + schedule.scale * expected["normal"])
    close(drawn_times, expected["sigma_drawn"])
    for name, times in expected.items():
        if name.startswith("t_K"):
            own = FlowSchedule(shift=SHIFT if name.endswith("shift3") else 1.0)
            steps = int(name.split("_")[1].removeprefix("K"))
            assert own.generator_times(999, steps) == pytest.approx(times.tolist(), rel=1e-6)
        if (weighting := name.removeprefix("weight.")) != name:
            divisor = loss_divisor(weighting, schedule, t, x_0, eps)  # type: ignore[arg-type]
            torch.testing.assert_close(1 / divisor, times.flatten(), rtol=2e-5, atol=1e-6)
