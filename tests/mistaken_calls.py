"""Every public function, constructor and method, called with one argument that is a plausible mistake.

    python tests/mistaken_calls.py [numpy|torch|jax] [SHARE OF THE CALLS] [SEED] [--show KIND]

prints how many calls were accepted, refused clearly, and neither, with the places of what was unclear. The functions are found
by walking the packages; arguments come from their names, of which `SOUND` has one sound value each. A function whose names mean
something else has a row in `ROWS`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

import diffcore as dc

SECONDS = 8
"""Of processor time, what no call may take longer than; others may be using the machine."""

LARGE = 2**30
"""Bytes: what is asked for and fits in the memory is made, however long that takes; a call that holds so much is not late."""

PACKAGES = (
    "",
    *(
        ".conditioning",
        ".exact",
        ".grids",
        ".guidance",
        ".interop",
        ".likelihood",
        ".levels",
        ".losses",
        ".metrics",
        ".noise",
        ".objectives",
        ".plots",
    ),
    *(".predictions", ".process", ".samplers", ".schedules", ".times", ".unet3d", ".unet3d.data", ".unet3d.training"),
    *(
        ".video",
        ".weights",
        ".interop.diffusers",
        ".interop.k_diffusion",
        ".unet3d.digits",
        ".mesh",
        ".unet3d.text",
        ".metrics.features",
    ),
)
SCHEDULE = dc.schedules.Cosine()
PLAN = dc.samplers.ancestral(SCHEDULE, 3)
FOLDER = Path(tempfile.mkdtemp(prefix="mistakes"))


def net(z: Any, log_snr: Any, cond: Any = None) -> Any:
    return 0.3 * z


def measured(x: Any) -> Any:
    return x


def loop(denoise: Any, z: Any, draw: Any) -> Any:
    return denoise(z, 0.0) + 0.0 * draw()


def _flow(z: Any, log_snr: Any, next_log_snr: Any = None) -> Any:
    return 0.3 * z


def _pair(z: Any, log_snr: Any) -> Any:
    return 0.3 * z, 0.0 * z


class Model:
    """What a denoiser of k-diffusion is."""

    sigma_data = 0.5

    def __call__(self, z: Any, sigma: Any) -> Any:
        return 0.5 * z


class Given(NamedTuple):
    """Sound arguments, with arrays of one library."""

    array: Callable[..., Any]
    """Of numbers, with `dtype=`."""

    def level(self, at: float = 0.0) -> dc.Level:
        return dc.levels.level(self.array([at, at + 0.5]))


def sound(give: Given) -> dict[str, Any]:
    """Return a sound value for each name of an argument, of data of shape (2, 3)."""
    x = give.array([[0.3, -0.4, 0.1], [0.2, 0.5, -0.7]])
    return {
        **dict.fromkeys(("x", "y", "z", "eps", "z_t", "z_s", "observed", "like", "unguided", "clean"), x),
        **dict.fromkeys(("features", "points"), np.asarray([[0.3, -0.4], [0.2, 0.5], [0.9, 0.0]])),
        "level": give.level(),
        "s": give.level(1.0),
        "t": give.level(-1.0),
        "schedule": SCHEDULE,
        "plan": PLAN,
        "a": SCHEDULE,
        "b": dc.schedules.LinearLogSNR(log_snr_min=-20.0, log_snr_max=20.0),
        **dict.fromkeys(("denoise", "unconditional", "denoiser"), net),
        **dict.fromkeys(("prediction", "source", "target"), "v"),
        "network": _flow,
        "middle": give.level(),
        "rho": 0.0 * x,
        "each": x**2,
        **dict.fromkeys(
            ("steps", "batch", "count", "number", "size", "factor", "frames", "window", "dims", "window"), 2
        ),
        "shape": (2, 3),
        "seed": 7,
        "draw": 1,
        "scaling": "vp",
        "function": "name",
        "argument": "x",
        "weight": 0.5,
        "mean": give.array([0.0, 0.1, 0.2]),
        "covariance": 1.0,
        "log_snr": give.array([0.0, 0.5]),
        "gamma": 0.5,
        "eta": 0.5,
        "mask": give.array([[1.0], [0.0]]),
        "measure": measured,
        "which": [0],
        "of": 2,
        "low": -1.0,
        "high": 1.0,
        "mu": 0.0,
        "sigmas": [10.0, 1.0, 0.0],
        "betas": [0.1, 0.2, 0.3],
        "alphas_cumprod": [0.9, 0.5, 0.1],
        "times": [1.0, 0.5, 0.0],
        "delta": 0.5,
        "log_snr_min": -5.0,
        "log_snr_max": 5.0,
        "weights": [0.4, 0.6],
        "nats": give.array([1.0, 2.0]),
        "bin_width": 2 / 255,
        "p": dc.Gaussian(x, x**2 + 1.0),
        "q": dc.Gaussian(x, x**2 + 2.0),
        "gaussian": dc.Gaussian(x, x**2),
        "sigma_data": 0.5,
        "percentile": 0.9,
        "bound": 1.0,
        "bias": 0.0,
        "noise": None,
        "loop": loop,
        "exact": None,
        "real": np.eye(4)[:, :2],
        "fake": np.eye(4)[:, :2] + 1.0,
        "path": FOLDER / "some",
        "config": None,
        "model": None,
        "data_range": 2.0,
        "values": dc.schedules.to_dict(SCHEDULE),
        "increments": (1.0, 2.0),
        "log_snrs": (5.0, 0.0, -5.0),
        "grid": np.asarray([-2.0, 0.0, 3.0]),
        "state": dc.start(PLAN, x, seed=1),
        "stages": [[0, -1], [1, 0], [2, 1], [-1, 2]],
        "sampler": "ddim",
        "null": None,
        "cond": None,
        "device": None,
        "dtype": None,
        "name": "tiny",
        "slope": -40.0,
        "step": 1,
        "xp": np,
        "u": give.array([0.1, 0.9]),
        "part": slice(0, 2),
        "backend": "numpy",
        "compile": None,
        "noise_std": 0.1,
    }


def rows(give: Given) -> dict[str, Mapping[str, Any] | None]:
    """Return the arguments of functions whose names mean something else than `SOUND` has; None leaves a function out."""
    x = give.array([[0.3, -0.4, 0.1], [0.2, 0.5, -0.7]])
    clip = give.array(np.linspace(-0.5, 0.5, 2 * 4 * 8 * 8).reshape(2, 4, 8, 8, 1))
    shown = give.array(np.linspace(-1.0, 1.0, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16, 1))
    config = dc.unet3d.preset("tiny")
    two = [dc.exact.Gaussian(np.zeros(3), 1.0), dc.exact.Gaussian(np.ones(3), 2.0)]
    video = {
        "denoise": two[0].denoise,
        "plan": PLAN,
        "video": clip,
        "window": 4,
        "prediction": "x",
        "method": "replacement",
    }
    noisy = {"t": give.array([0.2, 0.7])}
    plan = {
        "scaling": "vp",
        "log_snr": [-1.0, 1.0],
        "next_log_snr": [1.0, 2.0],
        "update": np.ones((2, 1, 3)),
        "sampler": "mine",
    }
    clips = {"clips": np.zeros((3, 5, 4, 4, 1), np.uint8), "labels": [0, 2, 1], "frames": 2}
    source = dc.unet3d.data.Arrays(**clips)
    part = {"observed": x[0, ...], "mask": give.array([1.0, 0.0, 0.0]) > 0.0}
    backwards = dc.samplers.unipc(SCHEDULE, grid=[3.0, 1.0, -2.0])
    flow = [dc.levels.level(give.array([at, at + 0.5]), "flow") for at in (-1.0, 0.0, 1.0)]
    path = [dc.start(PLAN, x, seed=1)]
    path += [dc.step(PLAN, path[0], 0.3 * path[0].z, prediction="v")]
    low = np.asarray([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    mixture = {"weights": [0.4, 0.6], "means": give.array([[0.0, 0.1, 0.2], [1.0, 1.1, 1.2]]), "covariances": 1.0}
    return {
        "Plan": plan,
        "sample": {"denoise": net, "plan": PLAN, "z": x, "seed": 7, "prediction": "v"},
        "start": {"plan": PLAN, "shape": (2, 3), "like": x, "seed": 7},
        "step": {"plan": PLAN, "state": dc.start(PLAN, x, seed=1), "y": x, "prediction": "v"},
        "load_state": {"path": FOLDER / "state.npz", "like": x},
        "save_state": {"path": FOLDER / "state.npz", "state": dc.start(PLAN, x, seed=1)},
        **dict.fromkeys(("*.log_snr", "*.slope", "*.__call__", "*.density", "*.log_density"), noisy),
        "schedules.Monotone": {"increments": give.array([1.0, 2.0, 3.0])},
        **dict.fromkeys(
            f"conditioning.{name}" for name in ("Downsample", "FrameAverage", "MomentMatching", "Projection")
        ),
        **dict.fromkeys(("conditioning.Reconstruction", "conditioning.Replacement", "guidance.ClassifierFree")),
        **dict.fromkeys(("guidance.Clip", "guidance.DynamicThreshold")),
        "conditioning.downsample": {"factor": 2},
        "conditioning.linear": {"matrix": np.ones((2, 3)), "event": (3,)},
        "conditioning.twisted": {
            "denoise": net,
            "plan": PLAN,
            "observed": x[:1, ...],
            "mask": give.array([1.0, 0.0, 0.0]) > 0.0,
            "shape": (1, 3),
            "particles": 2,
            "noise_std": 0.1,
            "prediction": "v",
        },
        "metrics.seams": {"clips": clip, "at": [2]},
        "video.Windowed": None,
        "guidance.split": None,
        "unet3d.data.Captioned": None,
        "unet3d.data.captioned": {"source": source, "captions": ["a", "b", "a"]},
        "unet3d.digits.captions": {"truth": dc.unet3d.digits.moving_digits_truth(frames=4, size=16, count=2)},
        **dict.fromkeys(("unet3d.text.Encoder", "unet3d.text.check", "mesh.Local")),
        "unet3d.text.encoder": {"folder": FOLDER / "encoder"},
        **{f"metrics.features.{name}": {"clips": clip} for name in ("pixels", "convolutions")},
        "mesh.local": {"denoise": net},
        "mesh.region": {"array": x},
        "video.windowed": {"denoise": net, "window": 2},
        "grids.from_sigmas": {"sigmas": [10.0, 1.0, 0.0], "scaling": "ve"},
        "grids.from_timesteps": {"timesteps": [900, 600, 300], "total": 1000},
        "losses.factor": {"level": give.level(), "prediction": "v", "weight": dc.weights.V()},
        "weights.Sigmoid.__call__": {"level": give.level(), "slope": -40.0},
        "weights.VariationalBound.__call__": {"level": give.level(), "slope": -40.0},
        "unet3d.UNet3DConfig.attends": {"level": 1},
        "unet3d.UNet3DConfig.from_dict": {"values": config.to_dict()},
        "unet3d.data.Arrays.label": {"index": 1},
        **dict.fromkeys((f"exact.{name}.conditional" for name in ("Empirical", "Gaussian", "Mixture")), part),
        "schedules.Laplace": {"mu": 0.0, "b": 0.5},
        "schedules.Interpolated": {"a": SCHEDULE, "b": dc.schedules.LinearLogSNR(), "weight": 0.5},
        "schedules.interpolate": {"a": SCHEDULE, "b": dc.schedules.LinearLogSNR(), "weight": 0.5},
        "schedules.Sigmoid": {"start": -3.0, "end": 3.0, "tau": 1.0},
        "samplers.trace": {"loop": loop, "like": x},
        "samplers.flow_grpo": {"schedule": dc.schedules.Flow(), "steps": 3, "noise": 0.5},
        "samplers.er_sde": {"schedule": SCHEDULE, "steps": 3, "noise": "er"},
        "guidance.classifier_free": {
            "denoise": net,
            "cond": x,
            "null": x,
            "weight": 1.0,
            "rescale": 0.5,
            "interval": (-1.0, 3.0),
        },
        "guidance.dynamic_threshold": {"percentile": 0.9, "bound": 1.0},
        "conditioning.frames": {"which": [0, 1], "of": 3, "trailing": 2},
        "conditioning.frame_average": {"count": 3},
        **{
            f"conditioning.{name}": {
                "denoise": net,
                "observed": x,
                "mask": x > 0.0,
                "prediction": "v",
                "schedule": SCHEDULE,
                **more,
            }
            for name, more in {"reconstruction": {"weight": 2.0}, "moment_matching": {}}.items()
        },
        "Plan.load": {"path": FOLDER / "plan.json"},
        "Plan.noised": {"log_snr": 0.5},
        "Plan.per_frame": {"stages": [[0, -1], [1, 0], [-1, 1]]},
        "conditioning.projection": {"observed": x[:, :1], "measure": dc.conditioning.frame_average(3)},
        **dict.fromkeys(
            f"guidance.{name}"
            for name in "Bands Classifier Composed Projected Renormed Rule Tangential ZeroStar".split()  # noqa: SIM905
        ),
        "guidance.autoguidance": {"denoise": net, "worse": net, "weight": 1.0},
        "guidance.classifier": {
            "denoise": net,
            "gradient": net,
            "weight": 1.0,
            "prediction": "v",
            "schedule": SCHEDULE,
        },
        "guidance.composed": {"denoise": net, "conds": [x, x], "null": x, "scales": [1.0, 2.0]},
        "guidance.history": {
            "denoise": net,
            "observed": x,
            "known": [True, False, False],
            "scale": 1.0,
            "prediction": "v",
            "schedule": SCHEDULE,
        },
        "conditioning.Product": None,
        "conditioning.product": {"denoisers": [net, net], "powers": [0.5, 0.5], "prediction": "x", "scaling": "vp"},
        "conditioning.observations": {"posteriors": [net, net], "prior": net, "prediction": "x", "scaling": "vp"},
        "conditioning.change_of_prior": {"posterior": net, "old": net, "new": net, "prediction": "x", "scaling": "vp"},
        "sample_adaptive": {"denoise": net, "schedule": SCHEDULE, "z": x, "seed": 7, "prediction": "v"},
        "sample_parallel": {"denoise": net, "plan": PLAN, "z": x, "seed": 7, "prediction": "v"},
        "likelihood.ode": {"denoise": two[0].denoise, "x": x, "plan": backwards, "prediction": "x"},
        "likelihood.trajectory": {"denoise": net, "plan": PLAN, "states": path, "prediction": "v"},
        "likelihood.transition": {"plan": PLAN, "before": path[0], "after": path[1], "y": x, "prediction": "v"},
        **{
            f"objectives.{name}": {"network": _flow, "x": x, "eps": x, "t": flow[0], "s": flow[2], **more}
            for name, more in {
                "lagrangian": {},
                "meanflow": {},
                "shortcut": {},
                "split_meanflow": {"middle": flow[1]},
            }.items()
        },
        "objectives.schedule_variance": {"each": give.array([0.1, 0.4])},
        "times.Beta": {"a": 2.0, "b": 3.0},
        "times.Shifted": {"base": dc.times.Uniform(), "shift": 2.0},
        "times.monotone": {"u": give.array([[0.1, 0.9, 0.4], [0.3, 0.2, 0.6]])},
        "times.pyramid": {"u": give.array([0.1, 0.9]), "frames": 3, "lag": 0.5},
        "objectives.sample_learned_variance": {
            "network": _pair,
            "schedule": SCHEDULE,
            "steps": 3,
            "prediction": "v",
            "shape": (2, 3),
            "seed": 1,
            "like": x,
        },
        "plots.trajectory": {"states": path},
        "plots.plans": {"given": PLAN},
        "plots.grids": {"given": [-2.0, 0.0, 3.0]},
        "plots.schedules": {"given": SCHEDULE},
        "grids.by_name": {"name": "karras", "schedule": SCHEDULE, "steps": 3},
        "grids.resolution_mu": {"tokens": 1024},
        "grids.stretch": {"grid": [-2.0, 0.0, 3.0], "terminal": 0.1},
        "schedules.by_name": {"name": "edm"},
        "schedules.simple_diffusion": {"side": 64},
        "schedules.zero_terminal_snr": {"table": dc.schedules.from_betas([0.1, 0.2, 0.3])},
        "exact.Empirical": {"points": give.array([[0.3, -0.4, 0.1], [0.2, 0.5, -0.7]])},
        "exact.Gaussian": {"mean": give.array([0.0, 0.1, 0.2]), "covariance": 1.0},
        "exact.Mixture": mixture,
        "exact.moments": {"plan": PLAN, "exact": two[0]},
        "exact.LowRank": None,
        "process.novelty": {"s": give.level(1.0), "t": give.level(-1.0)},
        "process.ordered": None,
        "likelihood.diffusion_discrete": {"denoise": net, "x": x, "schedule": SCHEDULE, "steps": 3, "prediction": "v"},
        "likelihood.bound": {
            "denoise": net,
            "x": x,
            "schedule": SCHEDULE,
            "points": 2,
            "prediction": "v",
            "decoder": None,
        },
        "likelihood.diffusion_continuous": {
            "denoise": net,
            "x": x,
            "schedule": SCHEDULE,
            "points": 2,
            "prediction": "v",
        },
        "likelihood.reconstruction": {"x": x, "schedule": SCHEDULE, "decoder": dc.likelihood.Density()},
        "likelihood.Density": None,
        "metrics.psnr": {"x": clip, "y": clip * 0.9},
        "metrics.ssim": {"x": clip, "y": clip * 0.9},
        "metrics.frechet_gaussians": {
            "mean1": low[0],
            "covariance1": np.eye(3),
            "mean2": low[1],
            "covariance2": np.eye(3),
        },
        "metrics.moments": {"features": np.eye(4)[:, :2]},
        "metrics.frechet_distance_unbiased": {"real": _cloud(0), "fake": _cloud(1), "points": 3},
        "metrics.SmallSample": None,
        "video.extend": {**video, "frames": 6},
        "video.interpolate": {**video, "factor": 2},
        "video.upscale": {**video, "factor": 2, "window": 4},
        "video.Progress": None,
        "video.Stream": None,
        "unet3d.UNet3DConfig": {field.name: getattr(config, field.name) for field in dataclasses.fields(config)},
        "unet3d.build": {"config": config, "backend": "numpy", "seed": 1},
        "unet3d.load": {"path": _model(), "backend": "numpy"},
        "unet3d.save": {"model": dc.unet3d.build(config), "path": FOLDER / "other.safetensors"},
        "unet3d.pretrained": None,
        "unet3d.summarise": {"config": config},
        "unet3d.data.Arrays": clips,
        "unet3d.data.array_file": {"path": _clips(), "frames": 2},
        "unet3d.data.videos": {"folder": FOLDER, "frames": 2, "size": (8, 8), "every": 1},
        "unet3d.data.Videos": None,
        "unet3d.data.Source": None,
        "unet3d.data.batch": {"source": source, "size": 2, "step": 1, "seed": 1, "images": 1, "flip": True},
        "unet3d.training.train": None,
        "unet3d.training.step_of": {"folder": FOLDER},
        "unet3d.training.Settings": {"steps": 3},
        "unet3d.digits.moving_digits": {"frames": 2, "size": 16, "count": 4},
        "unet3d.digits.moving_digits_truth": {"frames": 2, "size": 16, "count": 4},
        **{
            f"unet3d.digits.{name}": {"clips": shown} for name in ("features", "identity_held", "speed", "straightness")
        },
        "unet3d.digits.legibility": {"clips": shown, "labels": np.asarray([1, 2])},
        "interop.diffusers.plan": None,
        "interop.diffusers.schedule": None,
        "interop.diffusers.denoiser": None,
        "interop.diffusers.Scheduler": None,
        "interop.k_diffusion.plan": None,
        "interop.k_diffusion.denoiser": {"model": Model()},
        "interop.k_diffusion.model": {"denoise": net, "prediction": "x"},
        "predictions.solve": None,
        "predictions.check_solvable": None,
        "predictions.row_function": None,
        "predictions.kind_of": {"function": "name", "denoise": net, "prediction": "v"},
        "predictions.check_sigma_data": None,
        "process.check_gamma": None,
        "levels.check_scaling": None,
        "levels.check_level": None,
        "levels.line_up": None,
        "grids.check": None,
        "grids.Imported": None,
        "samplers.Sampler": None,
        "samplers.Variant": None,
        "schedules.Schedule": None,
        "weights.Weight": None,
        "times.Density": None,
    }


def _cloud(seed: int) -> Any:
    return np.random.default_rng(seed).normal(size=(40, 2))


def _model() -> Path:
    dc.unet3d.save(dc.unet3d.build(dc.unet3d.preset("tiny")), FOLDER / "model.safetensors")
    dc.save_state(FOLDER / "state.npz", dc.start(PLAN, np.ones((2, 3)), seed=1))
    PLAN.save(FOLDER / "plan.json")
    writers = import_module("diffcore.cli.writers")
    with writers.opened(FOLDER / "some.gif", 10.0) as writer:
        writer.write(np.zeros((1, 4, 8, 8, 3), np.float32))
    return FOLDER / "model.safetensors"


def _clips() -> Path:
    np.save(FOLDER / "clips.npy", np.zeros((3, 5, 4, 4, 1), np.uint8))
    return FOLDER / "clips.npy"


class Target(NamedTuple):
    """A function and sound arguments."""

    name: str
    call: Callable[..., Any]
    given: dict[str, Any]


def public() -> Iterator[tuple[str, Any]]:
    """Yield the public functions and classes by name."""
    seen = set[int]()
    for package in PACKAGES:
        module = import_module(f"diffcore{package}")
        names = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        ]
        for name in names:
            value = getattr(module, name)
            plain = isinstance(value, type) and issubclass(value, tuple)  # a result, which checks nothing
            made = package in (".guidance", ".conditioning") and isinstance(
                value, type
            )  # by a function, which has a row
            if callable(value) and not plain and not made and id(value) not in seen:
                seen.add(id(value))
                yield f"{package}.{name}".removeprefix("."), value


def targets(give: Given) -> Iterator[Target]:
    """Yield every public function with sound arguments, and the methods of what it returns."""
    known, own = sound(give), rows(give)
    for name, value in public():
        row = own.get(name, {})
        if row is None:
            continue
        with contextlib.suppress(ValueError, TypeError):
            parameters = inspect.signature(value).parameters
            given = dict(row) or {
                at: known[at] for at, parameter in parameters.items() if at in known and _wanted(parameter)
            }
            if any(
                at not in given and parameter.default is parameter.empty and parameter.kind not in (2, 4)
                for at, parameter in parameters.items()
            ):
                continue  # it has no row
            yield Target(name, value, given)
            if isinstance(value, type) or name.startswith(("guidance.", "conditioning.")):
                made = value(**given)
                methods = set(dir(made)) - {"tree_flatten", "tree_unflatten", "split", "clip", "frame"}
                for method in sorted(methods):
                    function = getattr(made, method, None)
                    if (method.startswith("_") and method != "__call__") or not inspect.ismethod(function):
                        continue
                    names, called = inspect.signature(function).parameters, f"{name}.{method}"
                    given = {at: known[at] for at, parameter in names.items() if at in known and _wanted(parameter)}
                    row = own.get(called) or (
                        own.get(f"*.{method}") if called.startswith(("schedules", "times")) else None
                    )
                    given = dict(row or given)
                    if all(at in given or parameter.default is not parameter.empty for at, parameter in names.items()):
                        yield Target(called, function, given)


def _wanted(parameter: inspect.Parameter) -> bool:
    return parameter.default is inspect.Parameter.empty or parameter.name in ("seed", "prediction", "steps", "scaling")


class Odd:
    """An object of no known type."""


NOTHING: Any = object()
VALUES: dict[str, Any] = {
    "None": None,
    "True": True,
    "text": "0.5",
    "empty text": "",
    "bytes": b"v",
    "object": Odd(),
    "class": Odd,
    "dict": {},
    "0": 0,
    "-1": -1,
    "2": 2,
    "0.5": 0.5,
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "1e300": 1e300,
    "1e-300": 1e-300,
    "10^9": 10**9,
    "10^15": 10**15,
    "-10^15": -(10**15),
    "10^400": 10**400,
    "fraction": Fraction(1, 3),
    "complex": 1 + 2j,
    "empty list": [],
    "list": [0.1, 0.2],
    "tuple": (1, 2),
    "list of text": ["a", "b"],
    "ragged": [[1.0], [1.0, 2.0]],
    "lambda": lambda *_, **__: None,
    "schedule": SCHEDULE,
    "class of schedule": dc.schedules.Cosine,
    "plan": PLAN,
    "int8": np.int8(2),
    "uint64": np.uint64(2),
    "float16": np.float16(0.5),
    "str_": np.str_("v"),
    "0-d": np.array(0.5),
    "int array": np.arange(3),
    "float array": np.linspace(0.1, 0.9, 3),
    "text array": np.array(["a"]),
    "empty array": np.empty(0),
    "huge array": np.full((2, 3), 1e300),
    "nan array": np.full((2, 3), np.nan),
    "objects": np.array([None, 1.0], dtype=object),
    "a name": "eps",
    "misspelt": "cosin",
    "path": "/nowhere/at/all",
    "NUL": "\0",
    "nested": [[[[[]]]]],
    "slice": slice(0, 1),
}
CHANGES: dict[str, Callable[[Any], Any]] = {
    "of integers": lambda x: (10.0 * x).astype(np.int64),
    "of bools": lambda x: x > 0,
    "complex": lambda x: x.astype(np.complex128),
    "half": lambda x: x.astype(np.float16),
    "single": lambda x: x.astype(np.float32),
    "swapped": lambda x: x.astype(x.dtype.newbyteorder()),
    "objects": lambda x: x.astype(object),
    "text": lambda x: x.astype(str),
    "with nan": lambda x: np.where(np.arange(x.size).reshape(x.shape) == 0, np.nan, x),
    "with inf": lambda x: np.where(np.arange(x.size).reshape(x.shape) == 0, np.inf, x),
    "times 1e300": lambda x: x * 1e300,
    "negative": lambda x: -x,
    "zeros": lambda x: x * 0,
    "list": lambda x: x.tolist(),
    "first": lambda x: x[:1],
    "none of it": lambda x: x[:0],
    "an axis more": lambda x: x[None],
    "an axis less": lambda x: x[0],
    "transposed": lambda x: x.T,
    "read-only": lambda x: _frozen(x),
    "strides": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "backwards": lambda x: x[..., ::-1],
}


def _frozen(x: Any) -> Any:
    x = x.copy()
    x.setflags(write=False)
    return x


def mutations(value: Any, give: Given) -> Iterator[tuple[str, Any]]:
    """Yield plausible mistakes in the place of a sound value."""
    yield from VALUES.items()
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        held = np.asarray(value)
        for name, change in CHANGES.items():
            with contextlib.suppress(Exception), np.errstate(all="ignore"):
                changed: Any = change(held)
                with contextlib.suppress(Exception):
                    changed = give.array(changed) if not isinstance(value, np.ndarray) else changed
                yield name, changed
        yield "of another library", held if not isinstance(value, np.ndarray) else _other(held)
    if isinstance(value, tuple) and value and all(type(size) is int for size in value):
        yield "the first 10^9", (10**9, *value[1:])
        yield "the last 10^9", (*value[:-1], 10**9)
    fields = getattr(value, "_fields", ())
    if fields:
        value = cast("Any", value)
        for field in fields:
            yield f"{field} None", value._replace(**{field: None})
            yield f"{field} of another shape", value._replace(**{field: np.ones((5, 7))})
            yield f"{field} nan", value._replace(**{field: math.nan})


def _other(held: Any) -> Any:
    torch = sys.modules.get("torch")
    return held.tolist() if torch is None else torch.tensor(np.asarray(held, dtype=np.float64))


class Late(BaseException):
    """Raised where a call takes too long."""


def _held() -> int:
    """Return the bytes that this process holds, 0 where the system does not tell."""
    with contextlib.suppress(OSError):
        return 4096 * int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return 0


def outcome(target: Target, argument: str, mutated: Any, seconds: float = SECONDS) -> tuple[str, str]:
    """Return (what came of a call, where and with which words)."""
    began, held = time.process_time(), _held()

    def late(most: int = 0) -> str:
        return "large" if max(most, _held()) - held > LARGE else "late"

    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = target.call(**{**target.given, argument: mutated})
            if isinstance(found, types.GeneratorType) or hasattr(found, "__next__"):
                found = next(iter(found), None)
    except Late as error:
        return late(*error.args), ""
    except Exception as error:
        if time.process_time() - began > seconds:
            return late(), str(error)[:200]
        return _judged(target, argument, error)
    if time.process_time() - began > seconds:
        return late(), ""
    documented = target.name == "metrics.seams"  # of one clip, whose error nobody knows
    if not said and not documented and _nan(found) and not _nan(mutated, infinite=True):
        return "silent NaN", ""
    return "accepted", ""


def _judged(target: Target, argument: str, error: Exception) -> tuple[str, str]:
    text, frames = str(error), traceback.extract_tb(error.__traceback__)
    last = frames[-1]
    where = f"{Path(last.filename).name}:{last.lineno} " + next(
        (f"({Path(f.filename).name}:{f.lineno}) " for f in reversed(frames) if "/diffcore/" in f.filename), ""
    )
    if any(frame.filename == __file__ for frame in frames[1:]):
        return "of the caller", ""
    if len(text) > 500:
        return "long", where + text[:100]
    if isinstance(error, OSError) and text.startswith("there is no folder"):
        return "refused", ""
    ours = "/diffcore/" in last.filename or "/unet3d/" in last.filename or "/backends/" in last.filename
    named = re.search(r"`[\w.]+`|^(\w+\.)*\w+: ", text) is not None
    right = isinstance(
        error,
        (TypeError, ValueError, OSError, ImportError, NotImplementedError, AttributeError, IndexError, MemoryError),
    )
    if ours and named and right:
        return "refused", ""
    if argument in text and text.startswith(f"{target.call.__name__}() ") and isinstance(error, TypeError):
        return "refused", ""
    return "unclear", f"{where}{type(error).__name__}: {text[:120]}"


def _nan(found: Any, infinite: bool = False, depth: int = 0) -> bool:
    if isinstance(found, float | complex | np.floating):
        return bool(found != found or (infinite and not math.isfinite(abs(found))))
    if hasattr(found, "dtype") and hasattr(found, "shape"):
        with contextlib.suppress(Exception):
            held = np.asarray(found.detach().cpu().double() if hasattr(found, "detach") else found)
            return bool(np.any(np.isnan(held)) or (infinite and not np.all(np.isfinite(held))))
        return False
    if isinstance(found, tuple | list) and depth < 3:
        return any(_nan(part, infinite, depth + 1) for part in found)
    if isinstance(found, dc.Plan) and depth < 3:
        return any(_nan(part, infinite) for part in (found.update, found.log_snr, found.next_log_snr))
    return False


def calls(give: Given) -> Iterator[tuple[Target, str, str, Any]]:
    """Yield (target, argument, mistake, value)."""
    for target in targets(give):
        parameters = inspect.signature(target.call).parameters
        for argument, parameter in parameters.items():
            if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
                continue
            value = target.given.get(argument, parameter.default)
            for name, mutated in mutations(value, give):
                yield target, argument, name, mutated


def given_in(library: str) -> Given:
    """Return the sound arguments of a library."""
    if library == "torch":
        import torch

        return Given(lambda values: torch.as_tensor(np.ascontiguousarray(values)))
    if library == "jax":
        import jax.numpy as jnp

        return Given(
            lambda values: jnp.asarray(np.asarray(values))
        )  # floats in float32, of what else is given its kind
    return Given(lambda values: np.asarray(values))


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise `Late` where a call takes longer, or waits ten times as long."""

    def late(*_: Any) -> None:
        raise Late(_held())  # before what was made is given back

    clocks = {signal.ITIMER_PROF: (signal.SIGPROF, seconds), signal.ITIMER_REAL: (signal.SIGALRM, 10 * seconds)}
    before = {number: signal.signal(number, late) for number, _ in clocks.values()}
    for clock, (_, after) in clocks.items():
        signal.setitimer(clock, after)
    try:
        yield
    finally:
        for clock in clocks:
            signal.setitimer(clock, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def run(library: str, share: float, seed: int) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Return how often each outcome came, the places of what was unclear, and the rest with its calls."""
    rng = random.Random(seed)
    totals, places, examples = Counter[str](), Counter[str](), Counter[str]()
    for target, argument, name, mutated in calls(given_in(library)):
        if rng.random() >= share:
            continue
        try:
            with limited(SECONDS):
                what, where = outcome(target, argument, mutated)
        except Late:
            what, where = "late", ""
        totals[what] += 1
        if what not in ("accepted", "refused", "of the caller", "large"):
            places[f"{what}: {where}" if where else f"{what}: {target.name}({argument}={name})"] += 1
            examples[f"{what}: {target.name}({argument}={name}) {where}"] += 1
    return totals, places, examples


def main() -> None:
    """Report."""
    import resource

    given = [word for word in sys.argv[1:] if not word.startswith("--")] + ["numpy", "1.0", "0"][len(sys.argv[1:]) :]
    os.chdir(FOLDER)  # some write what they are given a name for
    room = {"numpy": 4, "torch": 12}.get(given[0], 30) * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    totals, places, examples = run(given[0], float(given[1]), int(given[2]))
    out = sys.stdout.write
    for name, count in places.most_common(400):
        out(f"{count:6} {name}\n")
    if "--all" in sys.argv:
        for name in examples:
            out(f"      {name}\n")
    out(f"{sum(totals.values())} calls: {dict(totals)}\n")


if __name__ == "__main__":
    main()
