"""What the array API lacks, per library: noise, the loop, gradients, compilation, and fused kernels.

The arrays that come in decide: `of(array)` returns the backend that serves them. Backends are found through the
entry-point group `diffcore.backends`: an entry point's name is the root module of the arrays' type ("numpy", "torch",
"jax", "cupy"), its value a `module:attribute` that holds an instance of the contract, `Backend`. An array of a library
without an entry point is served by the plain array API backend, so that every library of the standard can sample.
"""

if __name__ != "diffcore.backends":
    raise ImportError(
        f"this folder is the package diffcore.backends and was imported as {__name__!r}; "
        "run `pip install -e .` and use `import diffcore.backends`"
    )

from diffcore._dispatch import available
from diffcore._dispatch import backend_of as of
from diffcore.backends.contract import Backend
from diffcore.backends.generic import ArrayAPIBackend
from diffcore.stage import Run, Source

__all__ = ["ArrayAPIBackend", "Backend", "Run", "Source", "available", "of"]
