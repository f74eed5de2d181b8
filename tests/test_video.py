"""Long video: what is given comes back, streams can be cut anywhere, and every length and factor is served."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from libraries import FRAMEWORKS, JAX, TORCH, example, host, put

import diffcore as dc
from diffcore import _streams
from diffcore.video import extend, interpolate, upscale

PLAN = dc.samplers.dpm_solver_pp(dc.schedules.Cosine(), steps=6, eta=1.0)
GRADIENTS = pytest.mark.parametrize("library", [TORCH, JAX])
RHO, SIDE = 0.8, 4


def covariance(frames: int, side: int = SIDE) -> Any:
    """A video that is AR(1) in time and smooth in space."""
    place = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), axis=-1).reshape(-1, 2)
    space = np.exp(-0.3 * np.sum((place[:, None] - place[None]) ** 2, axis=-1)) + 0.1 * np.eye(side * side)
    time = RHO ** np.abs(np.subtract.outer(np.arange(frames), np.arange(frames)))
    return 0.25 * np.kron(time, space)


class Denoiser:
    """The exact denoiser of that video, of clips of any number of frames, and how often it was called."""

    prediction = "x"

    def __init__(self, side: int = SIDE) -> None:
        self.side, self.calls = side, 0
        self.of: dict[int, Any] = {}

    def data(self, frames: int) -> Any:
        if frames not in self.of:
            shape = (frames, self.side, self.side, 1)
            self.of[frames] = dc.exact.Gaussian(np.zeros(shape), covariance(frames, self.side)).with_scaling("vp")
        return self.of[frames]

    def __call__(self, z: Any, log_snr: Any) -> Any:
        self.calls += 1
        return self.data(z.shape[1])(z, log_snr)


def movie(frames: int, *, batch: int = 2, side: int = SIDE) -> Any:
    return 0.5 * dc.noise.normal(3, 0, (batch, frames, side, side, 1))


def pieces(video: Any, cuts: list[int]) -> list[Any]:
    edges = [0, *sorted(cuts), video.shape[1]]
    return [video[:, a:b] for a, b in itertools.pairwise(edges)]


def run(name: str, video: Any, *, denoise: Any = None, **options: Any) -> dc.video.Stream:
    denoise = Denoiser() if denoise is None else denoise
    common: dict[str, Any] = {"window": 5, "overlap": 2, "method": "replacement", "seed": 7} | options
    if name == "extend":
        return extend(denoise, PLAN, video, **{"frames": 12, **common})
    if name == "interpolate":
        return interpolate(denoise, PLAN, video, 2, **common)
    return upscale(denoise, PLAN, video, 2, **common)


def source(name: str, frames: int = 6) -> Any:
    return movie(frames, side=SIDE // 2 if name == "upscale" else SIDE)


EACH = pytest.mark.parametrize("name", ["extend", "interpolate", "upscale"])


# what is there comes back


@EACH
@pytest.mark.parametrize("library", FRAMEWORKS)
@pytest.mark.parametrize("method", ["replacement", "reconstruction", "moment_matching"])
def test_given_frames_come_back_exactly(name: str, library: str, method: str) -> None:
    if library == "numpy" and method != "replacement":
        pytest.skip("NumPy has no gradients")
    video = source(name)
    with example(library) as like:
        made = run(name, put(video, like), method=method, weight=1.0, iterations=16).all()
        assert type(made) is type(put(video, like))
        assert made.dtype == like.dtype
        made = host(made)
    if name == "upscale":
        assert made.shape == (2, 6, SIDE, SIDE, 1)
        loose = {"replacement": 1e-6, "moment_matching": 1e-3, "reconstruction": 0.5}[method]
        np.testing.assert_allclose(dc.conditioning.downsample(2)(made), video, atol=loose)
    else:
        assert made.shape[1] == {"extend": 12, "interpolate": 11}[name]
        assert np.array_equal(made[:, :6] if name == "extend" else made[:, ::2], video)
    assert np.all(np.isfinite(made))


@EACH
@pytest.mark.parametrize("method", ["replacement", "reconstruction"])
def test_one_seed_is_one_video_in_every_library(name: str, method: str) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("jax")
    made = []
    for library in ("torch", "jax", *(["numpy"] if method == "replacement" else [])):
        with example(library) as like:
            made.append(host(run(name, put(source(name), like), method=method, weight=2.0).all()))
    for other in made[1:]:
        np.testing.assert_allclose(other, made[0], atol=2e-5)


# streams


@EACH
@given(data=st.data())
@settings(max_examples=10)
def test_however_a_video_is_cut_into_blocks_it_is_the_same_video(name: str, data: st.DataObject) -> None:
    video = source(name)
    cuts = data.draw(st.lists(st.integers(0, 6), max_size=6), label="cuts")
    made = run(name, iter(pieces(video, cuts))).all()
    np.testing.assert_array_equal(made, run(name, video).all())


@EACH
@pytest.mark.parametrize("library", FRAMEWORKS)
def test_a_stream_that_was_stopped_goes_on_bit_for_bit(name: str, library: str) -> None:
    with example(library) as like:
        video = put(source(name), like)
        whole = list(run(name, video))
        for stop in range(1, len(whole)) if library != "jax" else [2]:  # where each run is traced anew
            first = run(name, video)
            begun = [next(first) for _ in range(stop)]
            kept = io.BytesIO()
            np.savez(kept, **{k: np.asarray(v) for k, v in first.state._asdict().items() if v is not None})
            kept.seek(0)
            saved = np.load(kept)
            read, made = int(saved["read"]), int(saved["made"])
            arrays = {k: put(saved[k], like) for k in ("given", "context") if k in saved}
            state = dc.video.Progress(read, made, arrays.get("given"), arrays.get("context"))
            blocks = [*begun, *run(name, video[:, read:], resume=state)]
            assert len(blocks) == len(whole)
            for block, want in zip(blocks, whole, strict=True):
                np.testing.assert_array_equal(host(block), host(want))


@EACH
def test_a_clip_does_not_depend_on_its_batch(name: str) -> None:
    video, options = source(name), {"denoise": lambda z, log_snr: 0.5 * z, "prediction": "x"}
    both = run(name, video, seed=[7, 11], **options).all()
    for i, seed in enumerate((7, 11)):
        np.testing.assert_array_equal(run(name, video[i : i + 1], seed=[seed], **options).all()[0], both[i])


@EACH
def test_equal_noise_is_never_used_twice(name: str) -> None:
    """The noise of two blocks, and of the three functions under one seed, is drawn from other seeds."""
    streams = (_streams.EXTEND, _streams.INTERPOLATE, _streams.UPSCALE)
    keys = {
        tuple(key) for n in range(50) for stream in streams for key in dc.noise.fold_in(7, n, 2, stream=stream).tolist()
    }
    assert len(keys) == 300
    video = np.zeros_like(source(name))
    blocks = list(run(name, video, overlap=0, frames=15) if name == "extend" else run(name, video, overlap=0))
    assert len(blocks) >= 2
    new = [block[:, -1] if name != "interpolate" else block[:, -2] for block in blocks[-2:]]
    assert not np.allclose(*new)


@EACH
def test_memory_does_not_grow_with_the_length(name: str) -> None:
    """An endless video goes in; no more of it is read than the blocks that are asked for need."""
    read = 0

    def endless() -> Iterator[Any]:
        nonlocal read
        while True:
            read += 1
            yield source(name, 1)

    stream = run(name, endless(), **({"frames": None} if name == "extend" else {}))
    held = []
    for _ in range(6):
        block = next(stream)
        state = stream.state
        held.append(sum(0 if part is None else part.shape[1] for part in (state.given, state.context)))
        assert block.base is None or block.base.nbytes <= 4 * block.nbytes + 4096  # no view that keeps much alive
    assert max(held) <= 2 * 5
    assert read <= 6 * 5


def test_endless_extension_goes_on() -> None:
    stream = run("extend", movie(2), frames=None)
    assert sum(next(stream).shape[1] for _ in range(5)) == 2 + 4 * 3


def test_functions_nest_and_nothing_is_made_before_it_is_asked_for() -> None:
    denoise, larger = Denoiser(2), Denoiser(4)
    kind: dict[str, Any] = {"window": 5, "method": "replacement", "seed": 7}
    clip = movie(4, side=2)
    long = extend(denoise, PLAN, clip, frames=9, **kind)
    smooth = interpolate(denoise, PLAN, long, 2, **kind)
    large = upscale(larger, PLAN, smooth, 2, **kind)
    assert denoise.calls == larger.calls == 0
    made = large.all()
    assert made.shape == (2, 17, 4, 4, 1)
    long_video = extend(denoise, PLAN, clip, frames=9, **kind).all()
    smooth_video = interpolate(denoise, PLAN, long_video, 2, **kind).all()
    np.testing.assert_array_equal(made, upscale(larger, PLAN, smooth_video, 2, **kind).all())
    np.testing.assert_allclose(dc.conditioning.downsample(2)(made)[:, ::2], long_video, atol=1e-6)


@pytest.mark.jax
def test_jax_traces_a_run_once_for_all_blocks_of_a_kind() -> None:
    import jax.numpy as jnp

    denoise = Denoiser()
    list(run("extend", jnp.asarray(movie(5)), denoise=denoise, frames=8))
    one = denoise.calls
    again = Denoiser()
    list(run("extend", jnp.asarray(movie(5)), denoise=again, frames=23))
    assert again.calls == one


@pytest.mark.torch
def test_classifier_free_guidance_and_clipping_go_through() -> None:
    import torch

    def net(z: Any, log_snr: Any, cond: Any) -> Any:
        return 0.4 * z + 0.1 * cond

    guided = dc.guidance.classifier_free(
        net, cond=torch.ones(1, 1, 1, 1, 1), null=torch.zeros(1, 1, 1, 1, 1), weight=2.0
    )
    clip = torch.from_numpy(movie(4)).clamp(-1.0, 1.0)
    options: dict[str, Any] = {"prediction": "x", "transform_x": dc.guidance.clip(-1.0, 1.0)}
    made = run("extend", clip, denoise=guided, method="reconstruction", weight=2.0, **options).all()
    assert float(made.abs().max()) <= 1.0
    assert torch.equal(made[:, :4], clip)


def test_callbacks_are_called_after_every_stage_of_every_block() -> None:
    seen: list[int] = []
    list(run("extend", movie(6), callback=lambda state: seen.append(int(state.index))))
    assert seen == list(range(1, len(PLAN) + 1)) * 2
    for method in ("replacement", "rolling"):
        with pytest.raises(ValueError, match="`callback` must not write to the arrays of the state"):
            list(run("extend", movie(6), method=method, callback=lambda state: state.z.sort()))


@EACH
def test_the_denoiser_gets_clips_of_the_window_alone(name: str) -> None:
    """Also at the end, where fewer frames are left: the exact denoiser of clips of one shape goes through."""
    exact = dc.exact.Gaussian(np.zeros((5, SIDE, SIDE, 1)), covariance(5))
    for frames in (1, 4, 7):
        made = run(name, source(name, frames), denoise=exact).all()
        assert made.shape[1] == {"extend": 12, "interpolate": 2 * frames - 1}.get(name, frames)


@GRADIENTS
@pytest.mark.parametrize("name", ["interpolate", "upscale"])
@pytest.mark.parametrize("method", ["replacement", "reconstruction", "moment_matching"])
def test_what_is_drawn_beyond_the_end_changes_nothing(name: str, library: str, method: str) -> None:
    """For a denoiser that looks at each frame by itself: two frames in a window of five, and in one that they fill."""
    own: dict[str, Any] = {"denoise": lambda z, log_snr: 0.5 * z, "prediction": "x", "method": method, "weight": 0.5}
    with example(library) as like:
        video = put(source(name, 2), like)
        wide, tight = (
            host(run(name, video, window=window, overlap=0, **own).all())
            for window in (5, 3 if name == "interpolate" else 2)
        )
    np.testing.assert_allclose(wide, tight, atol=1e-5)


@EACH
def test_blocks_share_no_memory_with_the_video_nor_depend_on_it_any_more(name: str) -> None:
    """A reader may give one buffer again and again."""

    def reader(video: Any) -> Iterator[Any]:
        buffer = np.empty_like(video[:, :1])
        for k in range(video.shape[1]):
            buffer[...] = video[:, k : k + 1]
            yield buffer

    video = source(name)
    np.testing.assert_array_equal(run(name, reader(video)).all(), run(name, video).all())
    for clip in (video, video[:, :1]):
        assert not any(np.shares_memory(block, clip) for block in run(name, clip))


@pytest.mark.torch
@pytest.mark.parametrize("compile", [None, False, True])
def test_compile_is_for_every_block(compile: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    said, plain = [], dc.sampling.sample

    def sample(*given: Any, **options: Any) -> Any:
        said.append(options["compile"])
        return plain(*given, **options | {"compile": None})

    monkeypatch.setattr(dc.sampling, "sample", sample)
    list(run("extend", torch.from_numpy(movie(5)), frames=14, compile=compile))
    assert said == [compile] * 3


# ends of the ranges


def test_extension_starts_from_nothing_and_from_one_frame() -> None:
    made = run("extend", movie(0), frames=7).all()
    want = dc.sample(
        Denoiser(), PLAN, shape=(2, 5, SIDE, SIDE, 1), seed=dc.noise.fold_in(7, 0, 2, stream=_streams.EXTEND)
    )
    np.testing.assert_array_equal(made[:, :5], want)
    assert [block.shape[1] for block in run("extend", movie(1), frames=7)] == [1, 4, 2]


def test_extension_hands_out_no_more_than_was_asked_for() -> None:
    assert run("extend", movie(6), frames=4).all().shape[1] == 4
    assert run("extend", movie(6), frames=6).all().shape[1] == 6
    assert list(run("extend", movie(6), frames=0)) == []
    assert run("extend", movie(6), frames=7).all().shape[1] == 7
    begun = run("extend", movie(6), frames=12)
    next(begun)
    assert list(run("extend", movie(6), frames=4, resume=begun.state)) == []
    drawn = begun.state._replace(made=begun.state.read + 1)
    with pytest.raises(ValueError, match=r"`video` must hold the frames from `resume.read` on.*video\[:, \d+:\]"):
        next(run("extend", movie(6), frames=12, resume=drawn))


@pytest.mark.parametrize("frames", range(9))
@pytest.mark.parametrize("factor", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("overlap", [None, 0, 4])
def test_interpolation_by_any_factor_of_any_length(frames: int, factor: int, overlap: int | None) -> None:
    video = movie(frames)
    stream = interpolate(Denoiser(), PLAN, video, factor, window=5, overlap=overlap, method="replacement", seed=7)
    blocks = list(stream)
    if frames == 0:
        assert blocks == []
        return
    made = np.concatenate(blocks, axis=1)
    assert made.shape[1] == (frames - 1) * factor + 1 == stream.state.made
    np.testing.assert_array_equal(made[:, ::factor], video)


@pytest.mark.parametrize("frames", [0, 1, 2, 5, 6, 9])
@pytest.mark.parametrize("overlap", [0, 1, 4])
@pytest.mark.parametrize("factor", [1, (2, 1), 2])
def test_upscaling_of_any_length(frames: int, overlap: int, factor: Any) -> None:
    video = movie(frames, side=SIDE // 2)
    down = dc.conditioning.downsample(factor)

    def says(z: Any, log_snr: Any) -> Any:
        return 0.5 * z

    options: dict[str, Any] = {"window": 5, "overlap": overlap, "method": "replacement", "prediction": "x", "seed": 7}
    blocks = list(upscale(says, PLAN, video, factor, **options))
    if frames == 0:
        assert blocks == []
        return
    made = np.concatenate(blocks, axis=1)
    assert made.shape == (2, frames, down.factor[0] * SIDE // 2, down.factor[1] * SIDE // 2, 1)
    np.testing.assert_allclose(down(made), video, atol=1e-6)


# errors


def bad(change: Callable[[dict[str, Any]], None]) -> None:
    options: dict[str, Any] = {"frames": 9, "window": 5, "method": "replacement"}
    arguments = {"denoise": Denoiser(), "plan": PLAN, "video": movie(4)} | options
    change(arguments)
    denoise, plan, video = (arguments.pop(name) for name in ("denoise", "plan", "video"))
    list(extend(denoise, plan, video, **arguments))


@pytest.mark.parametrize(
    ("argument", "value", "kind", "says"),
    [
        ("window", 0, ValueError, "`window` must be an int >= 1, got 0"),
        ("window", 2.5, TypeError, "`window` must be an int >= 1, got 2.5"),
        ("overlap", 5, ValueError, "would make no new frame"),
        ("overlap", -1, ValueError, "`overlap` must be an int >= 0, got -1"),
        ("frames", -1, ValueError, "`frames` must be an int >= 0, got -1"),
        ("method", "magic", ValueError, "`method` must be .*, got 'magic'"),
        ("denoise", 3, TypeError, "`denoise` must be a function of .*, got 3"),
        ("denoise", lambda z, log_snr: z, TypeError, "`prediction` must be .*, got None"),
        ("plan", "ddim", TypeError, "`plan` must be a diffcore.Plan, got 'ddim'"),
        ("video", 3, TypeError, "the video is int"),
        ("video", [], ValueError, "no block at all"),
        ("video", np.zeros((4, 4, 4, 1), dtype=np.float32), ValueError, "one clip .* needs an axis more"),
        ("video", np.zeros((1, 4, 4, 4, 1), dtype=np.uint8), TypeError, "uint8"),
        ("video", np.full((1, 4, 4, 4, 1), np.nan, dtype=np.float32), ValueError, "must be finite"),
        ("video", [movie(2), movie(2, side=2)], ValueError, "may differ in the number of frames alone"),
        ("seed", [1, 2, 3], ValueError, "`seed` must be one int, or have 2 entries"),
        ("seed", -1, ValueError, "-1"),
        ("resume", 3, TypeError, "`resume` must be the `state` of a video.Stream, got 3"),
    ],
)
def test_errors_say_what_is_wrong(argument: str, value: Any, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        bad(lambda arguments: arguments.update({argument: value}))


@pytest.mark.parametrize("name", ["extend", "interpolate", "upscale"])
@pytest.mark.parametrize(
    ("argument", "value", "kind"),
    [
        ("seed", 2**64, ValueError),
        ("seed", 1.5, TypeError),
        ("weight", float("nan"), ValueError),
        ("weight", "much", TypeError),
        ("iterations", 0, ValueError),
        ("prediction", "noise", ValueError),
        ("transform_x", 1.0, TypeError),
    ],
)
def test_what_does_not_depend_on_the_video_is_checked_at_once(
    name: str, argument: str, value: Any, kind: type[Exception]
) -> None:
    with pytest.raises(kind, match=f"`{argument}`"):
        run(name, movie(4), **{argument: value})


def test_numpy_says_that_it_has_no_gradients() -> None:
    with pytest.raises(TypeError, match="replacement"):
        list(run("extend", movie(4), method="reconstruction"))


def test_an_empty_stream_says_so() -> None:
    with pytest.raises(ValueError, match="no frames left"):
        run("extend", movie(4), frames=0).all()
