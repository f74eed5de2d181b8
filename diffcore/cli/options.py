"""The options that commands share, with their help."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from diffcore.cli import models, report, saved

Backends = Literal["numpy", "torch", "jax"]
Dtypes = Literal["float32", "float64", "bfloat16"]
Methods = Literal["auto", "reconstruction", "moment_matching", "replacement", "forcing", "rolling"]


def panel(name: str) -> Callable[..., Any]:
    """Return what makes the options that --help lists under a name."""
    return partial(typer.Option, rich_help_panel=name)


model_option, sampling_option, input_option = panel("The model"), panel("Sampling"), panel("Input")
output_option, block_option = panel("Output"), panel("How it is done")


def _seed(value: int) -> int:
    if not 0 <= value < 2**63:
        raise report.Usage(f"--seed must be an int in [0, 2^63), got {value}")
    return value


Out = Annotated[
    Path, typer.Argument(metavar="OUT", help="The file to write: .mp4, .gif, .png (a sheet of frames) or .npy.")
]
In = Annotated[
    Path, typer.Argument(metavar="IN", help="The video to start from: .mp4, .gif, .webm, ..., .png or .npy.")
]
Weights = Annotated[
    str,
    model_option(
        "--weights",
        "-w",
        metavar="FILE|NAME",
        help="A weights file (.safetensors), or the name of an included model.",
        autocompletion=saved.shipped,
    ),
]
Backend = Annotated[
    Backends | None,
    model_option(help="The library; without it torch, JAX or NumPy, the first that is installed."),
]
Device = Annotated[
    str | None,
    model_option(
        help='Where to run: "cpu", "cuda", "cuda:1" (torch); "cpu", "gpu" (JAX). Without it a GPU if there is one.',
    ),
]
Dtype = Annotated[Dtypes, model_option(help="What the network computes in; bfloat16 on torch and JAX.")]
Label = Annotated[
    list[str] | None,
    sampling_option(
        "--label",
        "-l",
        metavar="INT|NAME",
        help="The class of the clips, from 0, or the name of the sub-folder it was trained on, which goes before a number: of the "
        "included model the digit. Once for each clip, or once for all.",
    ),
]
Prompt = Annotated[
    list[str] | None,
    sampling_option(
        "--prompt",
        "-p",
        metavar="TEXT",
        help="What the clips show, in words; once for each clip, or once for all. It takes --encoder, and a model trained on text.",
    ),
]
Encoder = Annotated[
    Path | None,
    sampling_option(
        metavar="FOLDER",
        help="The text encoder that the model was trained with, a local folder as transformers saves it: BERT, T5 or CLIP's. "
        "Nothing is downloaded.",
    ),
]
Guidance = Annotated[
    float | None,
    sampling_option(
        help="Weight w of classifier-free guidance, (1 + w) c - w u: more is clearer and less varied, 0 is off. "
        "Without it 1 where there is a label or a prompt.",
    ),
]
Sampler = Annotated[
    str,
    sampling_option(
        metavar="NAME",
        help=f"The method: one of {', '.join(models.samplers())}; names of k-diffusion and diffusers work too.",
        autocompletion=models.samplers,
    ),
]
Grid = Annotated[
    str | None,
    sampling_option(
        metavar="NAME|SIGMAS",
        help=f"Where the steps lie: one of {', '.join(models.grids())}; or sigmas, '14.6, 6.4, 1, 0', without --steps.",
        autocompletion=models.grids,
    ),
]
Steps = Annotated[int, sampling_option(min=1, help="Steps of the sampler.")]
Settings = Annotated[
    list[str] | None,
    sampling_option(
        "--set",
        metavar="NAME=VALUE",
        help="A setting of the sampler, such as gamma=0.1 (ancestral), eta=1 (ddim), order=3 (dpm_solver_pp); a wrong "
        "name lists the settings there are.",
    ),
]
Seed = Annotated[
    int,
    sampling_option(
        callback=_seed,
        metavar="INT",
        help="Seed of the noise: equal seeds give equal clips, and each clip has noise of its own.",
    ),
]
Size = Annotated[
    str | None,
    output_option(
        metavar="HxW",
        help='Height x width to which frames are scaled and cut: "64", "48x64", or "keep".',
    ),
]
Fps = Annotated[
    float | None,
    output_option(
        min=0.1,
        max=1000,
        help="Frames per second of .mp4 and .gif; without it those of IN, or of the clips that the model was trained on, or 10.",
    ),
]
InFps = Annotated[
    float | None,
    input_option(
        "--in-fps",
        min=0.01,
        max=1000,
        help="Take frames of IN at equal times, this many a second. Without it each frame is taken once, where the rate of IN "
        "varies, as many a second as there are on average, and by extend no more than the clips had that the model was trained on.",
    ),
]
Background = Annotated[
    str,
    input_option(
        metavar="COLOUR",
        help="What lies under transparent pixels: black, white, grey, or red,green,blue such as 255,128,0.",
    ),
]
Every = Annotated[
    int | None,
    input_option(
        min=1,
        help="Of a folder of videos: keep every N-th frame; 2 without it and without --rate.",
    ),
]
Rate = Annotated[
    float | None,
    input_option(
        "--rate",
        min=0.01,
        max=1000,
        help="Of a folder of videos: take frames at equal times, this many a second, whatever the rate of each file, so that a "
        "motion has one speed in all of them.",
    ),
]
Labels = Annotated[
    Literal["folders"] | None,
    input_option(
        help="folders: the sub-folder that a video is in is its class, in the order of their names.",
    ),
]
Zoom = Annotated[
    int | None,
    output_option(
        min=1,
        max=64,
        help="Write each pixel as a square of this side; without it large enough for frames 96 pixels wide or high. Not for .npy.",
    ),
]
Force = Annotated[bool, output_option("--force", "-f", help="Overwrite files that exist.")]
Json = Annotated[
    bool,
    output_option("--json", help="Print the result as JSON on stdout; everything else goes to stderr."),
]
Debug = Annotated[bool, output_option("--debug", help="Show where an error comes from.")]
Method = Annotated[
    Methods,
    block_option(
        help="How the known frames guide the new ones: reconstruction and moment_matching need gradients (torch, JAX), "
        "replacement does not. auto: reconstruction where there are gradients. forcing and rolling are for models trained with a "
        "level for each frame (train --frame-times), and for extend alone: known frames are shown clean, and with rolling the "
        "window moves by one frame, --steps being a multiple of window - overlap.",
    ),
]
History = Annotated[
    float | None,
    block_option(
        metavar="LOG_SNR",
        help="With forcing and rolling: how clean known frames are shown, as a log-SNR; without it, as clean as in training. "
        "4 hides small errors of frames that the model drew itself.",
    ),
]
Weight = Annotated[
    float | None,
    block_option(help="Weight of reconstruction guidance; without it 5, for upscale 2.", min=0.0),
]
Window = Annotated[int | None, block_option(min=1, help="Frames of a block; without it the model's.")]
Overlap = Annotated[
    int | None,
    block_option(
        min=0,
        help="How many of the last frames a block knows; without it a quarter of the window, but of a causal network with forcing "
        "or rolling all but one.",
    ),
]


def help_of(command: Callable[..., object]) -> str:
    """Return the text of a command for --help: its docstring, each paragraph on one line."""
    return "\n\n".join(" ".join(part.split()) for part in inspect.cleandoc(command.__doc__ or "").split("\n\n"))
