"""What eight devices of JAX draw together: the bits of one, each its own part. Run by test_mesh.py in a process of its own."""

import os
import re
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np

import diffcore as dc
from diffcore.backends import jax_kernel

SHAPE, SCHEDULE = (4, 8, 4, 4, 2), dc.schedules.Cosine()
PLANS = (
    dc.samplers.ancestral(SCHEDULE, steps=3, gamma=0.3),
    dc.samplers.dpm_solver_pp(SCHEDULE, steps=3, order=3, eta=1.0),
    dc.samplers.unipc(SCHEDULE, steps=3),
    dc.samplers.ddim(SCHEDULE, steps=3),
    dc.samplers.heun(SCHEDULE, steps=2),
)
SPEC, KINDS = jax.sharding.PartitionSpec, (jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit)
LAYOUTS = (((8,), SPEC(None, "x")), ((2, 4), SPEC("x", "y")), ((4,), SPEC(None, None, None, "x")))
START, LIKE = dc.noise.normal(1, 0, SHAPE), jnp.zeros(1)
COLLECTIVES = re.compile(r"(all-gather|all-reduce|collective-permute|all-to-all|reduce-scatter)(?:-start)?\(")


def net(z: Any, log_snr: Any) -> Any:
    return -0.5 * z


def draw(z: Any, plan: dc.Plan = PLANS[0], denoise: Any = net, **how: Any) -> Any:
    return dc.sample(denoise, plan, z, seed=7, prediction="v", **how)


def mesh_of(sizes: tuple[int, ...], kind: Any) -> Any:
    count = int(np.prod(sizes))
    names = ("x", "y")[: len(sizes)]
    return jax.make_mesh(sizes, names, axis_types=(kind,) * len(sizes), devices=jax.devices()[:count])


def close(found: Any, want: Any) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(want), atol=1e-5)


def check_layouts(plans: tuple[dc.Plan, ...]) -> None:
    """Each plan on each layout, in turn on meshes of both kinds: nothing is sent, and each device makes its part."""
    wanted = [np.asarray(draw(jnp.asarray(START), plan)) for plan in plans]
    began = dc.start(PLANS[0], shape=SHAPE, like=LIKE, seed=7).z
    for at, (sizes, spec) in enumerate(LAYOUTS):
        for number, kind in enumerate(KINDS):
            mesh = mesh_of(sizes, kind)
            with jax.set_mesh(mesh):
                z = jax.device_put(START, jax.sharding.NamedSharding(mesh, spec))
                for plan, want in [*zip(plans, wanted, strict=True)][(at + number) % 2 :: 2]:
                    program = jax.jit(lambda z, plan=plan: draw(z, plan)).lower(z).compile()
                    text = program.as_text()
                    assert not COLLECTIVES.findall(text), f"{plan} on {spec}, {kind} sends something"
                    found = program(z)
                    assert found.sharding.is_equivalent_to(z.sharding, z.ndim)
                    close(found, want)
                start = dc.start(PLANS[0], shape=SHAPE, like=z, seed=7).z
                assert start.sharding.is_equivalent_to(z.sharding, z.ndim)
                close(start, began)
    noise = jax.jit(lambda z: z + dc.noise.normal(7, 3, SHAPE, like=LIKE))
    mesh = mesh_of((8,), KINDS[0])
    z = jax.device_put(0.0 * START, jax.sharding.NamedSharding(mesh, SPEC(None, "x")))
    shapes = re.findall(r"f32\[([\d,]+)\]", noise.lower(z).compile().as_text())
    assert max(np.prod([int(n) for n in shape.split(",")]) for shape in shapes) <= np.prod(SHAPE) // 4, (
        "one device has it all"
    )


def check_whole_samples() -> None:
    """What reads whole samples, where frames are divided."""
    mesh = mesh_of((8,), KINDS[0])
    z = jax.device_put(START, jax.sharding.NamedSharding(mesh, SPEC(None, "x")))
    guide = dc.guidance.classifier_free
    rule = {"rule": dc.guidance.projected(norm=2.0), "prediction": "v", "schedule": SCHEDULE}
    pair = (net, lambda z, _: jnp.sin(z))
    for denoise, how in (
        (guide(*pair, weight=2.0, rescale=0.7), {"transform_x": dc.guidance.dynamic_threshold(0.9)}),
        (guide(*pair, weight=2.0, **rule), {}),
    ):
        close(draw(z, denoise=denoise, **how), draw(jnp.asarray(START), denoise=denoise, **how))


def check_shard_map() -> None:
    """Words of keys go with their samples; starts from noise, and denoisers that bring an axis in, have the types that fit."""
    mesh, spec = jax.sharding.Mesh(jax.devices()[:2], ("b",)), SPEC("b")

    def divided(run: Any, **how: Any) -> Any:
        return jax.jit(jax.shard_map(run, mesh=mesh, **({"in_specs": spec, "out_specs": spec} | how)))

    words = jnp.asarray(dc.noise.keys(3, 4))
    for plan in PLANS[:2]:
        whole = dc.sample(net, plan, shape=(4, 300), seed=3, prediction="v")

        def run(words: Any, plan: dc.Plan = plan) -> Any:
            return dc.sample(net, plan, shape=(2, 300), like=LIKE, seed=words, prediction="v")

        def by_hand(words: Any, plan: dc.Plan = plan) -> Any:
            state = dc.start(plan, shape=(2, 300), like=LIKE, seed=words)
            step = lambda _, state: dc.step(plan, state, net(state.z, None), prediction="v")  # noqa: E731
            return jax.lax.fori_loop(0, len(plan), step, state).z

        close(divided(run)(words), whole)
        close(divided(by_hand)(words), whole)

    def adds(more: Any) -> Any:
        plan = PLANS[2]
        return dc.sample(lambda z, _: more - 0.5 * z, plan, shape=(2, 3), like=LIKE, prediction="v")

    one = dc.sample(lambda z, _: 1.0 - 0.5 * z, PLANS[2], shape=(2, 3), prediction="v")
    close(divided(adds)(jnp.ones((4, 3))), np.concatenate([one, one]))

    def frames(z: Any) -> Any:
        first = 4 * jax.lax.axis_index("b")
        region = ((0, 4), (first, 4), (0, 4), (0, 4), (0, 2))
        source = lambda draw, shape: dc.noise.normal(7, draw, SHAPE, like=LIKE, region=region)  # noqa: E731
        return dc.sample(net, PLANS[0], z, noise=source, prediction="v")

    how = {"in_specs": SPEC(None, "b"), "out_specs": SPEC(None, "b")}
    close(divided(frames, **how)(jnp.asarray(START)), draw(jnp.asarray(START)))


def check_split() -> None:
    """Conditions on different devices, beside samples on others."""

    def one(z: Any, log_snr: Any, cond: Any) -> Any:
        return jnp.tanh(z) * cond["scale"][:, None, None, None, None] + 0.0 * log_snr[:, None, None, None, None]

    conds = {"cond": {"scale": jnp.ones(1)}, "null": {"scale": jnp.full(1, 3.0)}, "weight": 2.0}
    want = draw(jnp.asarray(START), denoise=dc.guidance.classifier_free(one, **conds))
    for kind in KINDS:
        mesh = mesh_of((2, 4), kind)
        guided = dc.guidance.classifier_free(dc.guidance.split(one, mesh, "x"), **conds)
        with jax.set_mesh(mesh):
            z = jax.device_put(START, jax.sharding.NamedSharding(mesh, SPEC("y")))
            program = jax.jit(lambda z, guided=guided: draw(z, denoise=guided)).lower(z).compile()
            sent = COLLECTIVES.findall(program.as_text())
            # where another axis is explicit, jax 0.10.2 gathers what a shard_map over some axes takes and gives
            assert sent == ["all-reduce"] or kind == KINDS[1], f"more than one exchange a stage: {sent}"
            close(program(z), want)
    run = jax.shard_map(
        lambda z: draw(z, denoise=guided), mesh=mesh_of((2, 4), KINDS[0]), in_specs=SPEC(), out_specs=SPEC()
    )
    close(jax.jit(run)(START), want)


def check_objectives() -> None:
    """Losses with a derivative forwards, and their gradient, of data divided by samples and frames."""
    flow, vp, ends = dc.schedules.Flow(), dc.schedules.Cosine(), jnp.linspace(0.9, 0.5, 4)
    apart = {"t": flow(ends), "s": flow(0.3 * ends)}

    def losses(scale: Any, x: Any) -> Any:
        def flow_map(z: Any, *levels: Any) -> Any:
            return jnp.tanh(scale * z) + sum(jax.nn.sigmoid(level)[:, None, None, None, None] for level in levels)

        each = (
            dc.objectives.meanflow(flow_map, x, jnp.sin(x), **apart),
            dc.objectives.lagrangian(flow_map, x, jnp.sin(x), **apart),
            dc.objectives.consistency(flow_map, x, jnp.sin(x), level=vp(ends)),
        )
        return jnp.stack(each).mean(), each

    run = jax.jit(jax.value_and_grad(losses, has_aux=True))
    mesh = mesh_of((2, 4), KINDS[0])
    x = jax.device_put(START, jax.sharding.NamedSharding(mesh, SPEC("x", "y")))
    for found, want in zip(jax.tree.leaves(run(0.7, x)), jax.tree.leaves(run(0.7, START)), strict=True):
        close(found, want)


if __name__ == "__main__":
    assert len(jax.devices()) == 8
    check_layouts(PLANS)
    check_whole_samples()
    check_shard_map()
    check_split()
    check_objectives()
    jax_kernel.works = lambda: False  # type: ignore[assignment]  # as on a GPU: XLA's own operations
    jax.clear_caches()
    check_layouts(PLANS[:1])
