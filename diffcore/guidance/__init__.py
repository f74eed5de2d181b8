r"""Guidance: wrappers round any denoiser, which lead its samples to a condition; and changes of x-hat, functions x -> x.

`classifier_free` puts a conditional and an unconditional prediction together, by (1 + w) c - w u or by a rule of `table()`;
`composed` several conditions; `autoguidance` takes a worse model; `classifier` the gradient of a classifier; `history` the known
frames of a video. `clip` and `dynamic_threshold` are a `transform_x` for `diffcore.sample`.

Source: Ho & Salimans 2022 (arXiv 2207.12598), eq. 6; Ho et al. 2022 (arXiv 2204.03458), eq. 6.
"""

from diffcore import _explained
from diffcore._threshold import Clip, DynamicThreshold, clip, dynamic_threshold
from diffcore.guidance._guided import ClassifierFree
from diffcore.guidance._rule import At, Rule
from diffcore.guidance._table import Row, table
from diffcore.guidance._weights import Weight
from diffcore.guidance.autoguidance import autoguidance
from diffcore.guidance.bands import Bands, bands
from diffcore.guidance.classifier import Classifier, classifier
from diffcore.guidance.classifier_free import classifier_free
from diffcore.guidance.composed import Composed, composed
from diffcore.guidance.history import history
from diffcore.guidance.magnitude import Magnitude, magnitude
from diffcore.guidance.projected import Projected, projected
from diffcore.guidance.renormed import Renormed, renormed
from diffcore.guidance.split import Split, split
from diffcore.guidance.tangential import Tangential, tangential
from diffcore.guidance.zero_star import ZeroStar, zero_star

__all__ = [
    "At",
    "Bands",
    "Classifier",
    "ClassifierFree",
    "Clip",
    "Composed",
    "DynamicThreshold",
    "Magnitude",
    "Projected",
    "Renormed",
    "Row",
    "Rule",
    "Split",
    "Tangential",
    "Weight",
    "ZeroStar",
    "autoguidance",
    "bands",
    "classifier",
    "classifier_free",
    "clip",
    "composed",
    "dynamic_threshold",
    "history",
    "magnitude",
    "projected",
    "renormed",
    "split",
    "table",
    "tangential",
    "zero_star",
]

_explained.face(__name__)
