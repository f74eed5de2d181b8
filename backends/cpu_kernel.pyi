"""The types of cpu_kernel.c."""

from typing import Any

from numpy.typing import NDArray

xla_noise: Any  # capsules of what XLA calls
xla_stage: Any

def noise(
    to: NDArray[Any],
    keys: NDArray[Any],
    draw: int,
    stream: int,
    starts: NDArray[Any] | None,
    size: int,
    begin: int,
    end: int,
    /,
) -> None: ...
def stage(
    to_z: NDArray[Any] | None,
    to_x: NDArray[Any] | None,
    to_memory: tuple[NDArray[Any] | None, ...],
    z: NDArray[Any],
    y: NDArray[Any] | None,
    other: NDArray[Any] | None,
    eps: NDArray[Any] | None,
    x: NDArray[Any] | None,
    memory: tuple[NDArray[Any], ...],
    table: NDArray[Any],
    index: int,
    samples: int,
    frames: int,
    keys: NDArray[Any] | None,
    draw: int,
    second: int,
    low: float,
    high: float,
    size: int,
    begin: int,
    end: int,
    /,
) -> None: ...
