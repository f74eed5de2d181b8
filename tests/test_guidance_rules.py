"""Rules of guidance: equal to classifier-free guidance in their limit, the same in every prediction and scaling, equal to
their papers' own code; and what a rule with momentum carries."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_guidance import LIBRARIES, Z, namespace

import diffcore as dc
from diffcore import guidance, predictions
from diffcore.levels import level

RNG = np.random.default_rng(3)
C, U = RNG.normal(size=Z.shape), RNG.normal(size=Z.shape)
VARIED: dict[str, guidance.Rule] = {
    "bands": guidance.bands(0.3, 1.2, octaves=2, over=-1),
    "magnitude": guidance.magnitude(0.5),
    "projected": guidance.projected(0.2, norm=1.5, over=(-1, -2)),
    "renormed": guidance.renormed(low=0.4, over=-1),
    "tangential": guidance.tangential(),
    "zero_star": guidance.zero_star(),
}


def fixed(y: Any) -> Any:
    return lambda z, log_snr: y


def free(**how: Any) -> Any:
    return guidance.classifier_free(fixed(C), fixed(U), weight=1.0, **how)


def guided(rule: Any, c: Any = C, u: Any = U, weight: Any = 2.0, **how: Any) -> Any:
    how = {"prediction": "x", "schedule": dc.schedules.Cosine()} | how if rule is not None else how
    return guidance.classifier_free(fixed(c), fixed(u), weight=weight, rule=rule, **how)


def own_kind(rule: Any) -> str:
    return rule.space or "x"


def test_every_rule_of_the_table_is_tried_here() -> None:
    assert set(VARIED) == set(guidance.table())


@pytest.mark.parametrize("library", LIBRARIES)
def test_rules_have_classifier_free_guidance_as_their_limit(library: str) -> None:
    xp = namespace(library)
    z, c, u = (xp.asarray(a) for a in (Z, C, U))
    weights = [1.5, np.array([0.0, 3.0]), xp.asarray(np.arange(6.0).reshape(2, 3)), lambda at: 0.5 * at]
    rows = guidance.table().items()
    for (name, row), weight in itertools.product(rows, weights) if library == "numpy" else zip(rows, weights[1:] * 2):  # noqa: B905
        plain = {} if row.plain is None else row.plain
        of: Any = {"tangential": c * 0.4, "zero_star": u}.get(name, u)
        own = c
        if name == "zero_star":  # u is nearest to c where their difference is orthogonal to it
            own = c - u * (xp.sum(c * u, axis=(1, 2), keepdims=True) / xp.sum(u * u, axis=(1, 2), keepdims=True) - 1.0)
        over = {"over": (1, 2)} if name == "bands" else {}
        rule = row.make(**plain, **over)
        found = guided(rule, own, of, weight, prediction=own_kind(rule))(z, xp.asarray(np.array([0.5, 2.0])))
        truth = guided(None, own, of, weight)(z, xp.asarray(np.array([0.5, 2.0])))
        np.testing.assert_allclose(np.asarray(found), np.asarray(truth), rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", VARIED)
def test_the_guided_x_is_the_same_whatever_is_predicted_under_every_scaling(name: str) -> None:
    rule, log_snr = VARIED[name], np.array([[-3.0, 0.5, 2.0], [1.0, 1.0, 6.0]])
    truth, reached = None, 0
    for scaling, kind in itertools.product(("vp", "ve", "flow"), ("x", "eps", "v", "score", "flow", "edm")):
        at = level(log_snr, scaling)
        z = at.alpha[..., None] * (C + U) + at.sigma[..., None] * Z
        to = lambda x: predictions.convert(x, z, at, source="x", target=kind)  # noqa: B023, E731
        schedule: Any = {"vp": dc.schedules.Cosine(), "ve": dc.schedules.Karras(), "flow": dc.schedules.Flow()}[scaling]
        y = guided(rule, to(C), to(U), prediction=kind, schedule=schedule)(z, log_snr)
        x = predictions.convert(y, z, at, source=kind, target="x")
        truth = x if truth is None else truth
        np.testing.assert_allclose(x, truth, rtol=1e-9, atol=1e-9)
        reached += 1
    assert reached == 18
    assert not np.allclose(truth, 3.0 * C - 2.0 * U, rtol=1e-3)


@pytest.mark.parametrize("end", [-np.inf, np.inf])
@pytest.mark.parametrize("kind", ["x", "eps", "v"])
def test_rules_are_finite_at_the_ends_and_where_predictions_are_0(kind: str, end: float) -> None:
    for rule in VARIED.values():
        for c, u in ((C, U), (0 * C, U), (C, 0 * U), (0 * C, 0 * U)):
            assert np.all(np.isfinite(guided(rule, c, u, prediction=kind)(Z, end)))


@pytest.mark.torch
def test_gradients_of_rules_are_finite_where_predictions_are_0() -> None:
    import torch

    for rule in VARIED.values():
        for own, other in ((1.0, 0.0), (0.0, 0.0), (1.0, 1.0)):
            run = guidance.classifier_free(
                lambda z, _, own=own: own * z,
                lambda z, _, other=other: other * z,
                weight=2.0,
                rule=rule,
                prediction=own_kind(rule),
            )
            gradient = torch.func.grad(lambda z, run=run: run(z, 0.0).sum())(torch.asarray(Z))
            assert torch.all(torch.isfinite(gradient))


@pytest.mark.torch
def test_rules_are_those_of_diffusers() -> None:
    import torch

    pytest.importorskip("diffusers")
    from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
    from diffusers.guiders.classifier_free_zero_star_guidance import cfg_zero_star_scale
    from diffusers.guiders.magnitude_aware_guidance import mambo_guidance
    from diffusers.guiders.tangential_classifier_free_guidance import normalized_guidance as tangential

    cs, us = (torch.asarray(RNG.normal(size=(3, 2, 3, 4, 5))) for _ in range(2))  # three calls
    buffer, rule = MomentumBuffer(-0.5), guidance.projected(0.3, norm=2.5, momentum=-0.5)
    carried: Any = guided(rule).begin(cs[0])
    for c, u in zip(cs, us, strict=True):
        found, _, carried = guided(rule, c, u, 4.0).carrying(cs[0], 0.0, carried)
        truth = normalized_guidance(c, u, 4.0, buffer, 0.3, 2.5, use_original_formulation=True)
        torch.testing.assert_close(found, truth)
    c, u = cs[0], us[0]
    flat = c.flatten(1), u.flatten(1)  # theirs takes no more than two axes beside the batch
    found = guided(guidance.magnitude(0.7), *flat, 4.0, prediction="flow")(flat[0], 0.0)
    torch.testing.assert_close(found, mambo_guidance(*flat, 4.0, 0.7, use_original_formulation=True))
    s = cfg_zero_star_scale(c.flatten(1), u.flatten(1)).view(-1, 1, 1, 1)
    found = guided(guidance.zero_star(), c, u, 4.0, prediction="flow")(c, 0.0)
    torch.testing.assert_close(found, c + 4.0 * (c - s * u), rtol=1e-5, atol=1e-6)  # they add 1e-8 to ||u||^2
    found = guided(guidance.tangential(), c.float(), u.float(), 4.0, prediction="eps")(c.float(), 0.0)
    torch.testing.assert_close(
        found, tangential(c.float(), u.float(), 4.0, use_original_formulation=True), rtol=1e-4, atol=1e-4
    )


@pytest.mark.torch
def test_a_run_under_a_rule_with_momentum_is_one_graph_on_torch() -> None:
    import torch

    z = torch.asarray(START)
    one, two = (dc.samplers.ddim(dc.schedules.Cosine(), steps=steps) for steps in (1, 2))
    net, half = (lambda z, log_snr: torch.tanh(z)), (lambda z, log_snr: 0.5 * z)
    rule = guidance.projected(0.5, norm=1.0, momentum=-0.5)
    for run, plan in (
        (guidance.classifier_free(net, half, weight=2.0), one),  # which forwards attributes that its models do not have
        (guidance.classifier_free(net, half, weight=2.0, rule=rule, prediction="x", interval=(-9.0, 9.0)), two),
    ):
        whole: Any = lambda z, run=run, plan=plan: dc.sample(run, plan, z, prediction="x")  # noqa: E731
        torch.testing.assert_close(torch.compile(whole, fullgraph=True, backend="eager")(z), whole(z))


def test_tangential_damping_is_a_projection_on_the_first_singular_vector() -> None:
    """The closed form is the SVD's."""
    found = guided(guidance.tangential(), weight=1.0, prediction="eps")(Z, 0.0)
    rows = np.stack([C.reshape(2, -1), U.reshape(2, -1)], axis=1)
    first = np.linalg.svd(rows, full_matrices=False)[2][:, 0]
    damped = first * np.sum(first * rows[:, 1], axis=1, keepdims=True)
    np.testing.assert_allclose(found, 2 * C - damped.reshape(C.shape), rtol=1e-10, atol=1e-12)


def test_what_each_rule_promises() -> None:
    eps = {"prediction": "flow"}
    zero = guided(guidance.zero_star(zero_below=1.0), **eps)
    np.testing.assert_allclose(zero(Z, 1.0), guided(guidance.zero_star(), C, -7.0 * U, **eps)(Z, 1.0), rtol=1e-12)
    np.testing.assert_array_equal(zero(Z, np.array([0.9, 1.0]))[0], 0.0)
    norms = lambda x: np.linalg.norm(x.reshape(2, -1), axis=1)  # noqa: E731
    np.testing.assert_allclose(norms(guided(guidance.renormed(high=np.inf))(Z, 0.0)), norms(C), rtol=1e-12)
    ratio = np.linalg.norm(guided(guidance.renormed(over=-1))(Z, 0.0), axis=-1) / np.linalg.norm(C, axis=-1)
    assert np.all(ratio <= 1.0 + 1e-12)
    moved = guided(guidance.projected())(Z, 0.0) - C
    np.testing.assert_allclose(np.sum(moved * C, axis=(1, 2)), 0.0, atol=1e-12)
    limited = guided(guidance.projected(1.0, norm=0.5), weight=1.0)(Z, 0.0) - C
    np.testing.assert_allclose(norms(limited), 0.5, rtol=1e-12)
    for size in (2, 3, 6):  # bands: a constant is coarse and what alternates is fine, whatever the size
        coarse, fine = np.ones((1, size, 1)), (-1.0) ** np.arange(size).reshape(1, size, 1)
        found = guided(guidance.bands(2.0, 5.0, over=1), coarse + fine, 0.0 * coarse, 1.0)(coarse, 0.0)
        np.testing.assert_allclose(found, 3.0 * coarse + 6.0 * fine, rtol=1e-12)
    middle = np.array([1.0, 0.0, -1.0, 0.0, 1.0]).reshape(1, 5, 1)  # of period 4: fine from the second octave on
    for octaves, low in ((1, 0.25), (2, 0.0)):
        found = guided(guidance.bands(2.0, 5.0, octaves=octaves, over=1), middle, 0.0 * middle, 1.0)(middle, 0.0)
        np.testing.assert_allclose(found, middle * (1.0 + 2.0 * low + 5.0 * (1.0 - low)), atol=1e-12)


class Model:
    """An x-hat that is not linear in z, on any library."""

    prediction = "x"

    def __init__(self, slope: float) -> None:
        self.slope, self.calls = slope, 0

    def __call__(self, z: Any, log_snr: Any) -> Any:
        self.calls += 1
        return self.slope * z / (1.0 + z * z)


PLAN = dc.samplers.ancestral(dc.schedules.Cosine(), steps=5)
START = RNG.normal(size=(3, 4))


def carrying(rule: Any, **how: Any) -> Any:
    return guidance.classifier_free(Model(0.9), Model(0.2), weight=2.0, rule=rule, **how)


def test_momentum_sums_the_differences_of_the_stages_before() -> None:
    """At parallel = 1 and without a limit, guidance is w d_k with d_k = c - u + momentum d_{k-1}."""
    z, rule = dc.noise.normal(0, 0, (2, 4), dtype=np.dtype(np.float64)), guidance.projected(1.0, momentum=-0.4)
    found = dc.sample(carrying(rule), PLAN, z, seed=5)
    by_hand, total = dc.start(PLAN, z, seed=5), np.zeros_like(z)
    for _ in range(len(PLAN)):
        c, u = Model(0.9)(by_hand.z, 0.0), Model(0.2)(by_hand.z, 0.0)
        total = c - u - 0.4 * total
        by_hand = dc.step(PLAN, by_hand, c + 2.0 * total, prediction="x")
    np.testing.assert_allclose(found, by_hand.z, rtol=1e-12)


@pytest.mark.parametrize("library", LIBRARIES)
def test_runs_with_momentum_resume_and_split_bitwise(library: str, tmp_path: Path) -> None:
    xp = namespace(library)
    rule = guidance.projected(0.5, norm=0.8, momentum=-0.6)
    z, states = xp.asarray(START), list[dc.State]()
    straight = np.asarray(dc.sample(carrying(rule), PLAN, z, seed=[1, 2, 3], callback=states.append))
    assert len(states[1].carried) == 1
    if library != "array_api_strict":
        dc.save_state(tmp_path / "state.npz", states[1])
        resumed = dc.sample(carrying(rule), PLAN, dc.load_state(tmp_path / "state.npz", like=z))
        np.testing.assert_array_equal(np.asarray(resumed), straight)
    alone = [np.asarray(dc.sample(carrying(rule), PLAN, z[k : k + 1, ...], seed=[k + 1])) for k in (0, 2)]
    np.testing.assert_array_equal(np.concatenate(alone), straight[[0, 2]])
    np.testing.assert_allclose(
        straight, np.asarray(dc.sample(carrying(rule), PLAN, START, seed=[1, 2, 3])), rtol=2e-4, atol=1e-5
    )


def test_momentum_outside_the_interval_stays_and_only_one_pass_runs() -> None:
    rule, interval = guidance.projected(momentum=0.5), (-4.0, 4.0)
    inside = int(np.sum((PLAN.log_snr >= -4.0) & (PLAN.log_snr <= 4.0)))
    within, states = carrying(rule, interval=interval), list[dc.State]()
    dc.sample(within, PLAN, START, seed=1, callback=states.append)
    assert (within.source.models[0].calls, within.source.models[1].calls) == (len(PLAN), inside)
    sums = [state.carried[0] for state in states]
    changed = [not np.array_equal(a, b) for a, b in itertools.pairwise([np.zeros_like(START), *sums])]
    assert sum(changed) == inside


def test_momentum_is_refused_where_it_would_be_lost() -> None:
    within = carrying(guidance.projected(momentum=0.5))
    with pytest.raises(TypeError, match="a rule with momentum needs what it made of the stages before"):
        dc.sample(lambda z, log_snr: within(z, log_snr), PLAN, START, prediction="x")


@pytest.mark.jax
def test_on_jax_another_weight_of_a_rule_is_no_new_trace_and_the_interval_is_a_branch() -> None:
    import jax
    import jax.numpy as jnp

    traces: list[int] = []

    def net(z: Any, log_snr: Any) -> Any:
        traces.append(1)
        return 0.5 * z

    half = lambda z, _: 0.25 * z + 1.0  # noqa: E731
    for rule in (guidance.zero_star(), guidance.projected(norm=1.0, momentum=-0.5)):
        traces.clear()

        def run(weight: Any, rule: Any = rule, **how: Any) -> Any:
            inside = guidance.classifier_free(net, half, weight=weight, rule=rule, prediction="v", interval=(-5.0, 5.0))
            return dc.sample(inside, PLAN, jnp.asarray(START), seed=1, **how)

        kept = [run(jnp.asarray(w), compile=True) for w in (1.0, 3.0)]
        assert len(traces) == 2, "once for each branch"
        np.testing.assert_allclose(kept[1], run(3.0), rtol=1e-6)
        assert not np.allclose(kept[0], kept[1])
    numpy = guidance.classifier_free(net, half, weight=3.0, rule=rule, prediction="v", interval=(-5.0, 5.0))
    np.testing.assert_allclose(kept[1], dc.sample(numpy, PLAN, START, seed=1), rtol=1e-4, atol=1e-5)
    assert jax.tree.leaves(kept)


def test_a_rule_works_with_cfg_pp_and_outside_the_interval_the_condition_leads() -> None:
    plan = dc.samplers.euler_cfg_pp(dc.schedules.Cosine(), grid=np.array([-6.0, -2.0, 2.0, 6.0]))
    never = {"weight": 2.0, "interval": (90.0, 99.0)}
    euler = dc.samplers.euler(dc.schedules.Cosine(), grid=np.array([-6.0, -2.0, 2.0, 6.0]))
    alone = dc.sample(Model(0.9), euler, START)
    for rule in (None, guidance.projected(0.5), guidance.projected(0.5, momentum=0.5)):
        run = guidance.classifier_free(Model(0.9), Model(0.2), **never, rule=rule)  # type: ignore[arg-type]
        np.testing.assert_allclose(dc.sample(run, plan, START), alone, rtol=1e-12)
        if rule is None or not rule.momentum:
            np.testing.assert_allclose(run.with_unguided(START, 0.0)[1], Model(0.9)(START, 0.0), rtol=1e-12)
            y, u = replace(run, interval=None).with_unguided(START, 0.0)
            np.testing.assert_allclose(u, Model(0.2)(START, 0.0))
            np.testing.assert_allclose(y, replace(run, interval=None)(START, 0.0))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: guided(guidance.projected()).with_scaling("vq"), ValueError, "vp"),
        (lambda: free(rule=guidance.projected()), TypeError, "`prediction` must be"),
        (lambda: free(rule=guidance.projected), TypeError, "`rule` must be a rule, such as"),
        (lambda: free(prediction="v"), ValueError, "where there is no `rule`"),
        (lambda: free(rule=guidance.projected(), prediction="v")(Z, 0.0), ValueError, "the scaling is not known; give `schedule`"),
        (lambda: guidance.projected(momentum=1.0), ValueError, r"`momentum` must be .*\(-1, 1\), got 1"),
        (lambda: guidance.projected(norm=0.0), ValueError, "`norm` must be a number > 0"),
        (lambda: guidance.projected(over="all"), TypeError, "`over` must be an axis or a tuple of axes"),
        (lambda: guidance.renormed(low=0.5, high=0.2), ValueError, r"`high` must be a number >= 0\.5, got 0\.2"),
        (lambda: guidance.renormed(space="velocity"), ValueError, "`space` must be"),
        (lambda: guidance.bands(over=0), ValueError, "axes other than 0, the batch"),
        (lambda: guidance.bands(octaves=0), ValueError, "`octaves` must be an int"),
        (lambda: guidance.zero_star(zero_below="start"), TypeError, "`zero_below` must be a number"),
    ],
)  # fmt: skip
def test_mistakes_with_rules_are_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
