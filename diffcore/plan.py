r"""A sampler is a table: a `Plan` lists, for every stage of a run, a level and the coefficients of a linear update.

Stage k calls the denoiser once, at log-SNR lambda_k, which gives x-hat_k, and then sets

    z'     = A_z z + A_saved saved + A_noise eps + B_0 x-hat_k + B_1 x-hat_{k-1} + ...
    saved' = C_z z + C_saved saved               + D_0 x-hat_k + D_1 x-hat_{k-1} + ...

with fresh standard normal eps. All that a sampler is, is in these numbers: they are worked out on the host in float64,
for all stages at once, and cast once, when they meet the data. So a plan can be printed, drawn, saved, and checked by
algebra (`diffcore.exact.moments`) without drawing a sample.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from diffcore import _array, levels, predictions
from diffcore.levels import Level

Float64 = npt.NDArray[np.float64]

Z, SAVED, NOISE, X = 0, 1, 2, 3
"""Columns of `Plan.update`: the state, the saved state, fresh noise, and from X on x-hat_k, x-hat_{k-1}, ..."""


@dataclass(frozen=True, eq=False)
class Plan:
    r"""What a sampler does, stage by stage, as float64 arrays on the host. See the module's text for the update.

    Args:
        sampler: the name and settings that made the plan, such as "ancestral(gamma=0.1)".
        scaling: "vp", "ve" or "flow".
        log_snr: (stages, *lead), the level of the state, and of the call of the denoiser, at each stage. `lead` is (),
            (B,) or (B, T).
        next_log_snr: (stages, *lead), the level of the state after each stage; inf where it is clean.
        update: (stages, *lead, 2, 3 + estimates): row 0 makes the new state, row 1 the new saved state, from the
            columns z, saved, noise, x-hat of this stage, x-hat of the stage before, ...

    Raises:
        ValueError: shapes that do not fit, a coefficient or a sigma that is not finite, or an unknown scaling.

    A plan iterates as its levels: `for log_snr in plan.log_snr`.

    >>> import diffcore as dc
    >>> plan = dc.samplers.ancestral(dc.schedules.LinearLogSNR(), steps=2, gamma=0.0)
    >>> print(plan)
    ancestral(gamma=0.0), vp, 2 stages
    stage  log_snr  next         z   noise       x
        0      -10     0  0.004765  0.7071  0.7071
        1        0   inf         0       0       1
    """

    sampler: str
    scaling: str
    log_snr: Float64
    next_log_snr: Float64
    update: Float64
    stochastic: bool = field(init=False, repr=False)
    """Whether any stage adds noise."""
    saves: bool = field(init=False, repr=False)
    """Whether the plan keeps a saved state."""
    tables: Mapping[str, Float64] = field(init=False, repr=False)
    """The `coefficients` of every named prediction that x follows from at each level: plain data, for compilers."""

    known: Mapping[str, Float64] = field(init=False, repr=False)
    """What becomes of known elements, (1 + stages, *lead, 3) for each variant of `conditioning.replacement`: the
    coefficients of the state before, of x and of fresh noise, at the start and after each stage."""

    FORMAT: ClassVar[int] = 1

    def __post_init__(self) -> None:
        from diffcore import _known

        levels.check_scaling("Plan", self.scaling)
        for name in ("log_snr", "next_log_snr", "update"):
            array = np.array(getattr(self, name), dtype=np.float64)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        shape = self.log_snr.shape
        if self.log_snr.ndim not in (1, 2, 3) or shape[0] < 1:
            raise ValueError(f"Plan: `log_snr` has shape {shape}, but takes (stages, *lead), lead (), (B,) or (B, T)")
        if self.next_log_snr.shape != shape:
            raise ValueError(f"Plan: `next_log_snr` has shape {self.next_log_snr.shape}, but `log_snr` has {shape}")
        if self.update.shape[:-1] != (*shape, 2) or self.update.shape[-1] <= X:
            raise ValueError(f"Plan: `update` has shape {self.update.shape}, but takes {(*shape, 2, '3 + estimates')}")
        if not np.all(np.isfinite(self.update)):
            stage = int(np.argwhere(~np.isfinite(self.update))[0][0])
            raise ValueError(
                f"Plan: stage {stage} of {self.sampler} has a coefficient that is not finite, at log_snr "
                f"{self.log_snr[stage]} -> {self.next_log_snr[stage]}; start from a finite log-SNR"
            )
        if not np.all(np.isfinite(self.levels.sigma)):
            raise ValueError(
                f"Plan: {self.sampler} calls the denoiser at a log_snr of -inf or NaN, where sigma is not finite under scaling "
                f"{self.scaling!r}; start from a finite log-SNR, for example with schedules.truncate"
            )
        if np.any(self.update[..., 1, NOISE] != 0.0):
            raise ValueError("Plan: the saved state takes no noise; `update[..., 1, 2]` must be 0")
        object.__setattr__(self, "stochastic", bool(np.any(self.update[..., 0, NOISE] != 0.0)))
        object.__setattr__(self, "saves", bool(np.any(self.update[..., 1, :] != 0.0)))
        tables = {kind: self._coefficients(row) for kind, row in predictions.table().items()}
        object.__setattr__(self, "tables", {kind: t for kind, t in tables.items() if np.all(np.isfinite(t))})
        object.__setattr__(self, "known", _known.table(self))

    def __len__(self) -> int:
        return int(self.log_snr.shape[0])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plan):
            return NotImplemented
        return (self.sampler, self.scaling) == (other.sampler, other.scaling) and all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in ("log_snr", "next_log_snr", "update")
        )

    def __hash__(self) -> int:
        return hash((self.sampler, self.scaling, self.log_snr.tobytes(), self.update.tobytes()))

    @property
    def lead(self) -> tuple[int, ...]:
        """The leading shape of the levels: (), (B,) or (B, T)."""
        return tuple(self.log_snr.shape[1:])

    @property
    def levels(self) -> Level:
        """The levels at which the denoiser is called, (stages, *lead) each, in float64."""
        return levels.level(self.log_snr, self.scaling)

    @property
    def start(self) -> Level:
        """The level at which a run starts: from pure noise, z = sigma eps."""
        return Level(*(_array.scalar(part[0]) for part in self.levels))

    @property
    def end(self) -> Level:
        """The level of what a run returns; log_snr = inf is clean data."""
        return levels.level(_array.scalar(self.next_log_snr[-1]), self.scaling)

    @property
    def history(self) -> int:
        """How many past estimates of x the plan reads."""
        return int(self.update.shape[-1]) - X - 1

    def coefficients(self, prediction: predictions.Prediction) -> Float64:
        """Return (stages, *lead, 2 + 2 columns) for a kind of prediction: x-hat's coefficients of z and of the
        prediction, then the two rows of `update`.

        Raises:
            ValueError: an unknown name, or x does not follow from the prediction at a level of the plan (eps and
                score at alpha = 0).

        >>> import diffcore as dc
        >>> dc.samplers.ddim(dc.schedules.Cosine(), steps=4).coefficients("eps").shape
        (4, 10)
        """
        if isinstance(prediction, str) and prediction in self.tables:
            return self.tables[prediction]
        found = self._coefficients(predictions.row_function("sample", "prediction", prediction))
        mixing = predictions.Mixing(found[..., 0], found[..., 1])
        predictions.check_solvable("sample", prediction, "x", self.levels, mixing)
        return found

    def _coefficients(self, row: predictions.RowFunction) -> Float64:
        xp = np
        with np.errstate(all="ignore"):
            mixing = np.stack(predictions.solve(xp, self.levels, row, predictions.table()["x"]), axis=-1)
        return np.concatenate([mixing, self.update.reshape((*self.log_snr.shape, -1))], axis=-1)

    def __str__(self) -> str:
        return table(self)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw the plan: the levels a run goes through, and the coefficients of each stage.

        Args:
            path: where to write the picture (png, svg, pdf), or None to only return the figure.

        Returns:
            A `matplotlib.figure.Figure`.

        Raises:
            ImportError: matplotlib is missing; install diffcore[plot].
        """
        from diffcore import _plot

        return _plot.plan(self, path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan to a JSON file, exactly; the file appears whole or not at all.

        >>> import diffcore as dc, tempfile, pathlib
        >>> plan = dc.samplers.ddim(dc.schedules.Cosine(), steps=4)
        >>> path = pathlib.Path(tempfile.mkdtemp(), "plan.json"); plan.save(path)
        >>> dc.Plan.load(path) == plan
        True
        """
        document = {
            "format": self.FORMAT,
            "sampler": self.sampler,
            "scaling": self.scaling,
            "shape": list(self.update.shape),
            "log_snr": [repr(float(value)) for value in self.log_snr.ravel()],
            "next_log_snr": [repr(float(value)) for value in self.next_log_snr.ravel()],
            "update": [repr(float(value)) for value in self.update.ravel()],
        }
        path = Path(path)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(document, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan that `save` wrote.

        Raises:
            ValueError: the file holds no plan, is cut short, or has a format this version does not know.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
            if document["format"] != cls.FORMAT:
                raise ValueError(f"has format {document['format']}, this version reads format {cls.FORMAT}")
            shape = tuple(document["shape"])
            arrays = {
                name: np.array([float(v) for v in document[name]]) for name in ("log_snr", "next_log_snr", "update")
            }
            return cls(
                sampler=document["sampler"],
                scaling=document["scaling"],
                log_snr=arrays["log_snr"].reshape(shape[:-2]),
                next_log_snr=arrays["next_log_snr"].reshape(shape[:-2]),
                update=arrays["update"].reshape(shape),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"Plan.load: `path` {str(path)!r} holds no plan: {error}") from error


def columns(plan: Plan) -> list[str]:
    """Return the names of the columns of `Plan.update`.

    >>> import diffcore as dc
    >>> columns(dc.samplers.dpm_solver_pp(dc.schedules.Cosine(), steps=4, order=2))
    ['z', 'saved', 'noise', 'x', 'x-1']
    """
    return ["z", "saved", "noise", "x", *(f"x-{back}" for back in range(1, plan.history + 1))]


def table(plan: Plan, *, lead: tuple[int, ...] | None = None) -> str:
    """Return the plan as text: a row a stage, a column a coefficient that is used.

    Args:
        plan: the plan.
        lead: which sample (and frame) to show where levels have leading axes; None shows the first.
    """
    where: tuple[Any, ...] = (slice(None), *(lead if lead is not None else (0,) * len(plan.lead)))
    update = plan.update[where]
    names = columns(plan)
    shown = [("", 0, c) for c in range(len(names)) if np.any(update[:, 0, c] != 0.0) or c == X]
    shown += [("saved: ", 1, c) for c in range(len(names)) if np.any(update[:, 1, c] != 0.0)]
    header = ["stage", "log_snr", "next", *(prefix + names[c] for prefix, _, c in shown)]
    body = [
        [str(stage), f"{at:.4g}", f"{to:.4g}", *(f"{update[stage, row, c]:.4g}" for _, row, c in shown)]
        for stage, (at, to) in enumerate(zip(plan.log_snr[where], plan.next_log_snr[where], strict=True))
    ]
    width = [max(len(line[k]) for line in [header, *body]) for k in range(len(header))]
    lines = ["  ".join(cell.rjust(w) for cell, w in zip(line, width, strict=True)) for line in [header, *body]]
    of = f" (levels of shape {plan.lead}, showing {where[1:]})" if plan.lead else ""
    return "\n".join([f"{plan.sampler}, {plan.scaling}, {len(plan)} stages{of}", *lines])
