r"""The contract: what a backend supplies, with enough said to write a fourth one.

Everything in `diffcore` but a few things is plain array API code. A backend supplies those. It knows a stage and a plan, and
nothing of guidance, conditioning or the functions that call it. Derive from `diffcore.backends.ArrayAPIBackend`, which has all
of them for any library that follows the array API standard, and replace what the library does better:

    from diffcore.backends import ArrayAPIBackend

    class CuPy(ArrayAPIBackend):
        def normal(self, words, draw, shape, *, region=None, **how):
            if region is not None:
                return super().normal(words, draw, shape, region=region, **how)
            return my_kernel(words, draw, shape, **how)              # same bits as diffcore.noise: the battery checks

    backend = CuPy(cupy)

    [project.entry-points."diffcore.backends"]                        # in the pyproject.toml of the project
    cupy = "my_package:backend"                                       # the name: the root module of the arrays' type

and check it with `diffcore.testing.check_backend(backend, like=cupy.zeros(1))`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from diffcore import _streams
from diffcore._array import Array
from diffcore._philox import Region
from diffcore.plan import Form
from diffcore.stage import Run, Source
from diffcore.state import State


@runtime_checkable
class Backend(Protocol):
    """What a backend supplies. Shapes and dtypes as in `diffcore`; every method is pure, and traces where the library traces."""

    name: str
    """What messages call the library."""

    def keys(self, words: npt.NDArray[np.uint32], like: Array) -> Array:
        """Return key words (B, 2) (low, high) in the form that `normal` takes, on the device of `like`."""

    def normal(
        self,
        words: Array,
        draw: Any,
        shape: tuple[int, ...],
        *,
        dtype: Any,
        device: Any = None,
        stream: int = _streams.SAMPLER,
        region: Region | None = None,
    ) -> Array:
        """Return standard normals (B, ...): Philox4x32-10 keyed by words[i], counted by (element, draw, stream), then
        Box-Muller; the format is `diffcore.noise`'s. `words` is what `keys` returned, or NumPy uint32 (B, 2); `draw`
        an int or a 0-d integer array. With a region, (first, size) along each axis, that block of the array: `words` are
        those of its samples alone, and a first index may be a 0-d integer array.
        """

    def bits(
        self,
        words: Array,
        draw: Any,
        shape: tuple[int, ...],
        *,
        device: Any = None,
        stream: int = _streams.SAMPLER,
        region: Region | None = None,
    ) -> Array:
        """Return the 32-bit words behind `normal`, in an integer dtype that holds [0, 2^32)."""

    def index(self, value: int) -> Any:
        """Return the number of a stage or a draw in the form that a state carries: an int unless tracing wants an array."""

    def advance(
        self,
        form: Form,
        state: State,
        y: Array,
        row: Any,
        noise: Array | Source | None,
        *,
        stochastic: bool,
        transform_x: Callable[[Array], Array] | None,
        other: Array | None = None,
        between: tuple[Any, Any] | None = None,
    ) -> State:
        """Return the state after a stage: the fused kernel. Must equal `diffcore.stage.advance`, which is the plain
        function, up to rounding. `row` holds the stage's coefficients: Python floats, or an array (*lead, n). `noise` is fresh
        noise, a caller's source of it, or None for the keys of the state; `between` are the levels that a source may ask for.
        """

    def run(self, run: Run, state: State) -> State:
        """Return the state after all stages from `state.index` on, calling the denoiser once a stage."""

    def cond(
        self, predicate: Array, true: Callable[..., Array], false: Callable[..., Array], *operands: Array
    ) -> Array:
        """Return true(*operands) or false(*operands) by a 0-d boolean, without waiting for a device; a library that
        cannot branch there computes both and selects.
        """

    def repeat(self, times: int, body: Callable[[Any], Any], carry: Any) -> Any:
        """Return body(... body(carry)), `times` times; a library that traces may trace the body once."""

    def gradient(self, function: Callable[[Array], Array], z: Array) -> tuple[Array, Callable[[Array], Array]]:
        """Return function(z) and its pullback, cotangent -> gradient with respect to z.

        Raises:
            TypeError: the library has no gradients; the message says which have.
        """

    def jvp(
        self, function: Callable[..., Array], primals: tuple[Array, ...], tangents: tuple[Array, ...]
    ) -> tuple[Array, Array]:
        """Return function(*primals) and its derivative along the tangents, of the shapes of the primals; both carry gradients.

        Raises:
            TypeError: the library has no gradients; the message says which have.
        """

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function compiled (torch.compile, jax.jit), or itself where there is no compiler."""

    def trace(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of arrays (and of None and tuples of them) that is traced once for all arrays of the same
        shapes, where the library traces whole runs; elsewhere the function itself.
        """
