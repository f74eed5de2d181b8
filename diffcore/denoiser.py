"""What a denoiser, a wrapper round one, and a constraint are: enough to write one outside of diffcore.

A **denoiser** is any callable. What it says of itself, it says by attributes, which all may be missing:

| attribute | type | means |
|---|---|---|
| `prediction` | str or row function | what it returns; then `diffcore.sample` need not be told |
| `scaling` | "vp", "ve", "flow" or None | the scaling it was made for; a plan with another one is refused |
| `schedule` | `diffcore.schedules.Schedule` | the schedule it was trained with; a plan with another scaling is refused |
| `with_scaling(scaling)` | method | the same denoiser for a scaling, asked where `scaling` is None |
| `at(log_snr)` | method | the denoiser for a stage whose level is known on the host, asked before each stage |
| `with_unguided(z, log_snr)` | method | (prediction, prediction without guidance), for plans with `second="unguided"` |
| `apart(z, log_snr)` | method | (c, u, w), where it is g = c + w (c - u); or (c, u, w, phi), see below; or None |
| `begin(z)` | method | the arrays that it carries before the first stage, where it carries some, such as a running average |
| `carrying(z, log_snr, carried)` | method | (prediction, that without guidance, what the next stage gets); see `State.carried` |
| `posterior_covariance(z, log_snr)`, `posterior_variance` | methods | Cov[x given z], or its diagonal, known in closed form |

Of `apart`, phi is by how much guidance is rescaled, g times phi std(c) / std(g) + 1 - phi; without it, by nothing (phi = 0).

A **wrapper** is a denoiser round another one: a frozen dataclass that names its fields of arrays and denoisers in `parts`. On
JAX it is then a pytree: a compiled run that is kept takes those parts as arguments, and reads what they hold now. Where it has
neither a scaling nor `with_scaling`, its parts get the plan's: in a copy of it, those that have `with_scaling` are asked.

A **constraint** holds something of a run: `replacement` overwrites known elements, others may move the state in any way.

    @dataclass(frozen=True)
    class Half:                                   # a wrapper: half the prediction
        parts: ClassVar = ("denoise",)
        denoise: Any

        def __call__(self, z, log_snr):
            return 0.5 * self.denoise(z, log_snr)
"""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

from diffcore._array import Array
from diffcore.plan import Plan
from diffcore.state import State


class Denoiser(Protocol):
    """A callable (z, log_snr) -> prediction of the shape, dtype and library of z, which it never writes to.

    z is (B, ...); log_snr is (B,), or of the leading shape of the plan's levels. Under a plan that looks `ahead` it is
    called with the level that the stage leads to as well.
    """

    def __call__(self, z: Array, log_snr: Array, /) -> Array:
        """Return the prediction at z."""


@runtime_checkable
class Wrapper(Protocol):
    """A denoiser round others; see the module."""

    parts: ClassVar[tuple[str, ...]]
    """The names of the fields that hold arrays, denoisers, or tuples of them."""

    def __call__(self, z: Array, log_snr: Array, /) -> Array:
        """Return the prediction at z."""


@runtime_checkable
class Constraint(Protocol):
    """What `diffcore.sample(..., constraint=)` takes: it is asked once a run for what it holds in it."""

    def hold(self, plan: Plan, z: Array) -> Held:
        """Return what a run of the plan holds whose states are like z; raise where it does not fit."""


class Held(Protocol):
    """What a constraint holds in one run: a frozen dataclass whose arrays are named in `parts`, as for a `Wrapper`.

    Both methods are pure, and are traced where the library traces. The number of a stage, `before.index`, may be traced.

    One whose `after` overwrites elements may say so by an attribute `overwrites`, (x, known, table), for kernels that do it
    with the stage: after stage k, where known, z is the sum of table[k + 1], (*lead, 3), times (z before, x, noise). x and known
    are of the shape of z; `known` holds booleans, or numbers n with which an element is known while n >= k + 1.
    """

    def begin(self, state: State, noise: Noise) -> Array:
        """Return z of the state that the run starts from."""

    def after(self, before: State, state: State, noise: Noise) -> Array:
        """Return z of the state after a stage."""


class Noise(Protocol):
    """Fresh noise for a constraint, independent of the sampler's: like z of a state, another draw after each stage."""

    def __call__(self) -> Array:
        """Return standard normals of the shape of z."""
