"""Noise against an implementation of its own: Philox in Python integers, Box-Muller in Python floats."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from diffcore import _array, _streams, backends, noise
from diffcore._array import Array
from diffcore.backends import Backend
from diffcore.testing._arrays import compare, epsilon, fail_unless, host, put, smallest
from diffcore.testing._naming import naming

__all__ = ["check_noise", "philox"]

KNOWN_ANSWERS = (
    ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
)
"""Counter, key and output of philox4x32-10, from the file `kat_vectors` of Random123."""


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the four 32-bit words of Philox4x32-10.

    Source: Salmon et al. 2011 (doi 10.1145/2063384.2063405), sec. 3.3.

    >>> " ".join(f"{word:08x}" for word in philox((0, 0, 0, 0), (0, 0)))
    '6627e8d5 e169c58d bc57ac4c 9b00dbd8'
    """
    (a, b, c, d), (k, q), mask = counter, key, 0xFFFFFFFF
    for _ in range(10):
        first, second = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (second >> 32) ^ b ^ k, second & mask, (first >> 32) ^ d ^ q, first & mask
        k, q = (k + 0x9E3779B9) & mask, (q + 0xBB67AE85) & mask
    return a, b, c, d


def _words(seed: int, draw: int, stream: int, element: int) -> tuple[int, int, int]:
    """Return the two words of an element's pair of normals, and which of the two it is; the layout is `_philox`'s."""
    tile, place = divmod(element, 4 * 256)
    lane, within = divmod(place, 256)
    block = tile * 256 + within
    words = philox((block & 0xFFFFFFFF, block >> 32, draw, stream), (seed & 0xFFFFFFFF, seed >> 32))
    return words[lane & 2], words[(lane & 2) + 1], lane & 1


def _normal(first: int, second: int, which: int) -> float:
    """Return one normal of a pair, sqrt(-2 log u) cos or sin, with the angle split exactly into quadrant and remainder."""
    upper = first >= 1 << 31
    tail = ((0xFFFFFFFF - first if upper else first) + 0.5) / 2.0**32
    radius = math.sqrt(-2.0 * (math.log1p(-tail) if upper else math.log(tail)))
    quadrant, remainder = divmod(second + (1 << 29), 1 << 30)
    angle = (remainder - (1 << 29) + 0.5) * math.pi / 2.0**31
    cosine, sine = math.cos(angle), math.sin(angle)
    x, y = ((cosine, sine), (-sine, cosine), (-cosine, -sine), (sine, -cosine))[quadrant & 3]
    return radius * (y if which else x)


def check_noise(
    like: Array | None = None,
    *,
    backend: Backend | None = None,
    size: int = 1500,
    draws: Sequence[tuple[int, int]] = ((1, 0), (2**32 - 1, 3)),
    ulps: float = 8.0,
) -> float:
    """Check that a backend's noise is the noise: equal bits, normals to a few ulp, whatever the batch, size and region.

    Args:
        like: a floating array of the library, dtype and device; NumPy float32 without one.
        backend: the backend to check; None is the one that serves `like`.
        size: elements a sample; more than 1024 reach a second tile.
        draws: pairs (draw, stream); the first is also taken in parts.
        ulps: what normals may be off by, in units of the rounding of their size.

    Returns:
        The largest error of a normal, in those units.

    Raises:
        AssertionError: naming seed, draw and element.

    Source: Salmon et al. 2011 (doi 10.1145/2063384.2063405), sec. 3.3; Box & Muller 1958 (doi 10.1214/aoms/1177706645).

    >>> check_noise(size=40) < 4.0
    True
    """
    for counter, key, answer in KNOWN_ANSWERS:
        fail_unless(" ".join(f"{word:08x}" for word in philox(counter, key)) == answer, "Philox", f"not {answer}")
    like = put(np.zeros(()), np.zeros((), dtype=np.float32) if like is None else like)
    backend = backends.of(like) if backend is None else backend
    xp, device, worst = _array.namespace("testing.check_noise", like=like), _array.device(like), 0.0
    seeds = [0, 2**64 - 1, 0x0123456789ABCDEF]
    with naming(backend, "keys"):
        words = backend.keys(noise.keys(seeds, 3), like)
    for draw, stream in draws:
        name = f"noise of draw {draw}, stream {stream}, in {str(like.dtype).rsplit('.', 1)[-1]}"
        pairs = [[_words(seed, draw, stream, e) for e in range(size)] for seed in seeds]
        want_bits = [[pair[pair[2]] for pair in row] for row in pairs]
        where = {"sample": np.arange(3)[:, None], "element": np.arange(size)}
        with naming(backend, "bits"):
            bits = backend.bits(words, draw, (3, size), device=device, stream=stream)
            fail_unless(
                xp.isdtype(bits.dtype, "integral"), name, f"bits have dtype {bits.dtype}, but should be integers"
            )
            compare(f"{name}: bits", host(bits), want_bits, 0.0, where=where)
        with naming(backend, "normal"):
            drawn = backend.normal(words, draw, (3, size), dtype=like.dtype, device=device, stream=stream)
            fail_unless(drawn.dtype == like.dtype, name, f"dtype {drawn.dtype}, but was asked for {like.dtype}")
            normals = np.array([[_normal(*pair) for pair in row] for row in pairs])
            unit = epsilon(like) * np.abs(normals) + smallest(like)
            worst = max(worst, ulps * compare(f"{name}: normals", host(drawn), normals, ulps * unit, where=where))
            if (draw, stream) != draws[0]:
                continue
            for i in (0, 2):
                alone = backend.normal(
                    words[i : i + 1, ...], draw, (1, size), dtype=like.dtype, device=device, stream=stream
                )
                compare(f"{name}: sample {i} alone", host(alone)[0], host(drawn)[i], 0.0)
            for shape in ((3, 0), (3, 2, size // 2 - 1)):
                part = backend.normal(words, draw, shape, dtype=like.dtype, device=device, stream=stream)
                fail_unless(tuple(part.shape) == shape, name, f"shape {tuple(part.shape)}, but was asked for {shape}")
                flat = host(part).reshape(3, -1)
                compare(
                    f"{name}: a sample of shape {shape[1:]} is a prefix", flat, host(drawn)[:, : flat.shape[1]], 0.0
                )
    _check_regions(backend, like, words, size)
    with naming(backend, "normal"):
        array = xp.asarray(1, device=device)
        traced, plain = (backend.normal(words, draw, (3, 4), dtype=like.dtype, device=device) for draw in (array, 1))
        compare("a draw number that is an array", host(traced), host(plain), 0.0)
        from_host = backend.normal(noise.keys(seeds, 3), 1, (3, 4), dtype=like.dtype, device=device)
        compare("seed words from the host", host(from_host), host(plain), 0.0)
    return worst


def _check_regions(backend: Backend, like: Array, words: Array, size: int) -> None:
    """Check that regions of an array are its regions: whole samples, rows that cross tiles, single elements, nothing."""
    shape, device = (3, 4, max(1, size // 3), 2), _array.device(like)
    drawn = {
        "bits": lambda words, **how: backend.bits(words, 3, shape, device=device, stream=_streams.TIMES, **how),
        "normal": lambda words, **how: backend.normal(
            words, 3, shape, dtype=like.dtype, device=device, stream=_streams.TIMES, **how
        ),
    }
    rows = shape[2]
    regions = [
        ((1, 2), (0, 4), (0, rows), (0, 2)),
        ((0, 3), (1, 3), (0, rows), (0, 2)),
        ((0, 2), (1, 2), (rows // 3, rows - rows // 3), (0, 2)),
        ((2, 1), (3, 1), (rows - 1, 1), (1, 1)),
        ((0, 3), (0, 4), (0, rows), (1, 1)),
        ((0, 3), (4, 0), (0, rows), (0, 2)),
    ]
    for what, draw in drawn.items():
        with naming(backend, what):
            full = host(draw(words))
            for region in regions:
                first, count = region[0]
                part = draw(words[first : first + count, ...], region=region)
                want = full[tuple(slice(at, at + length) for at, length in region)]
                name = f"region {region} of {shape}"
                fail_unless(tuple(part.shape) == want.shape, name, f"shape {tuple(part.shape)}, not {want.shape}")
                compare(name, host(part), want, 0.0)
