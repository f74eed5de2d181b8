"""What XLA makes of a run on an H200: the kernels of a stage and the memory between them. No GPU is needed.

    pip install "jax[cuda12]<0.11"                                    # whose compiler is asked; later ones look for a GPU
    JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 python -m benchmarks.xla_gpu
    JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 python -m benchmarks.xla_gpu --sampler er_sde --dtype bfloat16 --plain

It compiles ten stages of eight clips of 16x128x128x3, clipped, for a denoiser that returns an array, and prints what the body of
their loop launches; `--plain` leaves the kernel of Pallas out. An array of the run is 25 MB in float32.
"""

from __future__ import annotations

import argparse
import os
import re
from typing import Any

import numpy as np

H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 4800000000000 l2_cache_size: 62914560 clock_rate_ghz: 1.98
  device_memory_size: 150754820096 shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H200"
"""
SHAPE = (8, 16, 128, 128, 3)


def compiled(sampler: str, dtype: str, plain: bool) -> Any:
    """Return the compiled run."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies

    import diffcore as dc
    from diffcore.backends import jax_kernel, jax_pallas

    devices = topologies.get_topology_desc("", "cuda", target_config=H200, topology="1x1x1").devices
    whole = jax.sharding.NamedSharding(jax.sharding.Mesh(np.array(devices), ("x",)), jax.sharding.PartitionSpec())
    jax_kernel.serves, jax_pallas.works = (lambda *_: False), (lambda: not plain)  # type: ignore[assignment]
    jax_kernel.works = lambda: False  # type: ignore[assignment]
    plan = dc.samplers.make(sampler, dc.schedules.Cosine(), grid=np.linspace(-6.0, 4.0, 11))
    start = dc.start(plan, jnp.zeros((8, 1), dtype), seed=7)

    def run(z: Any, y: Any) -> Any:
        memory = tuple(jnp.zeros_like(z) for _ in range(plan.form.memory))
        state = start._replace(z=z, memory=memory)
        return dc.sample(lambda *_: y, plan, state, prediction="eps", transform_x=dc.guidance.clip())

    array = jax.ShapeDtypeStruct(SHAPE, jnp.dtype(dtype))
    return jax.jit(run, in_shardings=(whole, whole), out_shardings=whole).lower(array, array).compile()


def launches(text: str) -> list[str]:
    """Return what the body of the loop of a compiled program launches: the name, and what it makes."""
    called = re.search(r"while\(.*body=(%[\w.]+)", text)
    if called is None:
        return []
    body = re.search(rf"^{re.escape(called[1])} .*?^}}", text, re.MULTILINE | re.DOTALL)
    lines = re.findall(
        r"^  (?:ROOT )?(%[\w.]+) = (.*?) (fusion|custom-call|copy)\(", body[0] if body else "", re.MULTILINE
    )
    layout = re.compile(r"{[\d,]*}")
    return [f"{kind:12} {name:36} {layout.sub('', made)}" for name, made, kind in lines]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.xla_gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--sampler", default="ancestral", help="a name of samplers.table(); %(default)s")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="%(default)s")
    parser.add_argument("--plain", action="store_true", help="leave the kernel of Pallas out")
    given = parser.parse_args()
    os.environ.setdefault("XLA_FLAGS", "--xla_gpu_autotune_level=0")  # nothing can be tried
    try:
        found = compiled(given.sampler, given.dtype, given.plain)
    except (NotImplementedError, RuntimeError) as error:
        parser.exit(
            2,
            f"python -m benchmarks.xla_gpu: JAX has no compiler for CUDA here ({error}); the head of this file says how\n",
        )
    print("\n".join(launches(found.as_text())))
    print(f"between kernels: {found.memory_analysis().temp_size_in_bytes / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
