"""The table that a sampler is: `Plan`, its form, its text, its file, its picture, and the table of known elements."""

from diffcore import _explained
from diffcore.plan.form import Form
from diffcore.plan.plan import Float64, Plan

__all__ = ["Float64", "Form", "Plan"]

_explained.face(__name__)
