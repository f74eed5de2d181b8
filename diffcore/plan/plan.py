r"""A sampler is a linear system: a `Plan` lists, for every stage of a run, a level and the coefficients of its update.

Stage k calls the denoiser once, at log-SNR lambda_k, which gives x-hat_k, and then sets

    (z', m_1', ..., m_M') = update_k (z, m_1, ..., m_M, eps, x-hat_k)

with fresh standard normal eps. The memory m holds whatever a sampler needs of the past: estimates, a saved state, slopes; it
is 0 at the start. These numbers define the sampler completely: they are computed on the host in float64, for all stages at
once, and cast once, to the dtype of the data. So a plan can be printed, plotted, saved, and checked by algebra
(`diffcore.exact.moments`) without drawing a sample.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from diffcore import _array, _check, _layout, levels, predictions
from diffcore._array import Array
from diffcore.levels import Level
from diffcore.plan import checks, io, known, marks, parts, plot, text
from diffcore.plan.form import Form, Second, form_of, needed

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    r"""A sampler as a table, stage by stage, of float64 arrays on the host. See the module's docstring for the update.

    Args:
        sampler: the name and settings that made the plan, such as "ancestral(gamma=0.1)".
        scaling: "vp", "ve" or "flow".
        log_snr: (stages, *lead), the level of the state, and of the call of the denoiser, at each stage. `lead` is (),
            (B,) or (B, T). A stage may wait (the next level is the same), start clean, or go back to more noise.
        next_log_snr: (stages, *lead), the level of the state after each stage; inf where it is clean.
        update: (stages, *lead, 1 + M, M + 3): rows z', m_1' .. m_M'; columns z, m_1 .. m_M, noise, x-hat; one more
            column where there is a second estimate.
        settings: those that make the plan again, for `samplers.make(schedule=..., grid=..., **plan.settings)`; of a plan of
            your own, a traced one, a part or a sum, what you give, or nothing.
        second: "unguided" adds a column for x-hat of the denoiser without its guidance, "raw" one for x-hat before
            `transform_x`; None adds none.
        ahead: whether the denoiser also gets the level that the stage leads to, (z, log_snr, next_log_snr).

    Raises:
        ValueError: shapes that do not fit, a coefficient or a sigma that is not finite, a next level that is NaN, or an
            unknown scaling.

    A plan iterates as its levels: `for log_snr in plan.log_snr`. `plan[4:]` is the run from stage 4 on, `first + second` joins
    two plans.

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
    settings: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    second: Second = field(default=None, kw_only=True)
    ahead: bool = field(default=False, kw_only=True)
    form: Form = field(init=False)
    """How many arrays the plan remembers, and which of its rows only copy."""
    noisy: tuple[bool, ...] = field(init=False)
    """For each stage, whether it adds noise."""
    needs_memory: tuple[bool, ...] = field(init=False)
    """For each stage, whether it or a later stage reads the memory from before it."""
    marks: tuple[int, ...] = field(init=False)
    """Before and after each stage, a number of all stages up to there, which a state carries: see `State`."""
    start: Level = field(init=False)
    """The level at which a run starts, floats or arrays of the leading shape: from pure noise, z = sigma eps."""
    tables: Mapping[str, Float64] = field(init=False)
    """The `coefficients` of every named prediction that determines x at each level: plain data, for compilers."""
    known: Mapping[str, Float64] = field(init=False)
    """The update of known elements, (1 + stages, *lead, 3) for each variant of `conditioning.replacement`: the
    coefficients of the state before, of x and of fresh noise, at the start and after each stage."""

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, str) or not self.sampler.isprintable():
            raise _check.error(TypeError, "Plan", "sampler", "be a name of printable characters", self.sampler)
        levels.check_scaling("Plan", self.scaling)
        _check.choice("Plan", "second", self.second, ("unguided", "raw", None))
        _check.flag("Plan", "ahead", self.ahead)
        _check.instance("Plan", "settings", self.settings, Mapping, "a dict of the settings of the sampler")
        for name in ("log_snr", "next_log_snr", "update"):
            array = np.array(_array.to_host(getattr(self, name), np.float64, function="Plan", argument=name))
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        object.__setattr__(self, "settings", MappingProxyType(dict(self.settings)))
        checks.arrays(self)
        object.__setattr__(self, "form", form_of(self.update, self.second))
        noisy = np.any(self.update[..., self.form.noise] != 0.0, axis=tuple(range(1, self.update.ndim - 1)))
        object.__setattr__(self, "noisy", tuple(noisy.tolist()))
        object.__setattr__(self, "needs_memory", tuple(np.any(needed(self.update)[:-1], axis=1).tolist()))
        object.__setattr__(self, "marks", marks.table(self.log_snr, self.next_log_snr, self.update))
        start = (part[0] for part in self.levels)
        object.__setattr__(self, "start", Level(*(part if part.ndim else float(part) for part in start)))
        tables = {kind: self._coefficients(row) for kind, row in predictions.table().items()}
        object.__setattr__(self, "tables", {kind: t for kind, t in tables.items() if np.all(np.isfinite(t))})
        object.__setattr__(self, "known", known.table(self.scaling, self.log_snr, self.next_log_snr))
        _array.setting(type(self))

    def __len__(self) -> int:
        return int(self.log_snr.shape[0])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plan):
            return NotImplemented
        same = all(getattr(self, name) == getattr(other, name) for name in ("sampler", "scaling", "second", "ahead"))
        arrays = ("log_snr", "next_log_snr", "update")
        return same and all(np.array_equal(getattr(self, name), getattr(other, name)) for name in arrays)

    def __hash__(self) -> int:
        arrays = ((array + 0.0).tobytes() for array in (self.log_snr, self.update))  # -0.0 equals 0.0
        return hash((self.sampler, self.scaling, self.second, *arrays))

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle by what a plan is made of: the rest follows from it, and a read-only view has no pickle."""
        given = {item.name: getattr(self, item.name) for item in fields(self) if item.init}
        return _made, ({**given, "settings": dict(self.settings)},)

    def __repr__(self) -> str:
        lead = f", levels of shape {self.lead}" if self.lead else ""
        return f"<Plan {self.sampler}, {self.scaling}, {len(self)} stages{lead}, memory {self.form.memory}>"

    def __str__(self) -> str:
        return text.table(self, whole=False)

    def text(self, *, lead: tuple[int, ...] | None = None) -> str:
        """Return the whole table as text, a row a stage; of more than 64, `print` shows the first 20 and last 10.

        Args:
            lead: the indices of the sample, or sample and frame, to show where levels have leading axes; None shows the first.

        Raises:
            ValueError, TypeError: indices that the levels do not have.
        """
        return text.table(self, lead=lead)

    def __getitem__(self, part: slice) -> Plan:
        """Return a part of the plan: `plan[4:]` from stage 4 on, `plan[:4]` up to there.

        Raises:
            TypeError: an index that is not a slice of step 1.
            ValueError: an empty part; one that begins where the sampler needs its memory of earlier stages.

        >>> import diffcore as dc
        >>> len(dc.samplers.ddim(dc.schedules.Cosine(), steps=8)[6:])
        2
        """
        return replace(self, settings={}, **parts.part(self, part))

    def __add__(self, other: Plan) -> Plan:
        """Return this plan followed by another, which begins with an empty memory and new draws.

        Raises:
            ValueError: another scaling, flags or leading shape; a start at another level than this plan's end.

        >>> import diffcore as dc
        >>> plan = dc.samplers.ddim(dc.schedules.Cosine(), steps=8)
        >>> bool((plan[:3] + plan[3:]).update.tolist() == plan.update.tolist())
        True
        """
        if not isinstance(other, Plan):
            return NotImplemented
        return replace(self, settings={}, **parts.joined(self, other))

    def noised(self, log_snr: npt.ArrayLike) -> Plan:
        r"""Return the plan that finally goes back to more noise, as the process does from level s to the noisier level t.

            z_t = (alpha_t / alpha_s) z_s + sqrt(1 - e^{lambda_t - lambda_s}) sigma_t eps

        It takes no call of the denoiser, and is part of the last stage. `plan.noised(level) + other` restarts.

        Args:
            log_snr: where to, below the level that the plan ends at; or one for each of the leading shape of its levels.

        Raises:
            ValueError: a level that is not noisier than the end of the plan.

        Source: Ho et al. 2022 (arXiv 2204.03458), sec. 2, for the transition; Xu et al. 2023 (arXiv 2306.14878), alg. 2.

        >>> import diffcore as dc
        >>> dc.samplers.ddim(dc.schedules.LinearLogSNR(), steps=2).noised(0.0).next_log_snr.tolist()
        [0.0, 0.0]
        """
        return replace(self, settings={}, **parts.noised(self, log_snr))

    def per_frame(
        self, stages: npt.ArrayLike, *, begun: npt.ArrayLike | None = None, history: float | None = None
    ) -> Plan:
        """Return the plan in which every frame takes the stages of this one at its own times, and waits in between.

        Args:
            stages: (N, T) ints: which stage of this plan frame f takes at stage k of the new one; -1 where it waits. A frame
                takes the stages in order, beginning with 0; before, it waits at the first level, and afterwards at the last.

        Returns:
            A plan with levels (1, T), for data (B, T, ...). A frame that waits keeps state and memory.

        Raises:
            ValueError: levels that have axes already; stages out of order or range.

        Source: Chen et al. 2024 (arXiv 2407.01392), sec. 3.3, for schedules of levels over frames and time.

        >>> import diffcore as dc
        >>> plan = dc.samplers.ddim(dc.schedules.LinearLogSNR(), steps=2)
        >>> plan.per_frame([[0, -1], [1, 0], [-1, 1]]).log_snr[:, 0].tolist()
        [[-10.0, -10.0], [0.0, -10.0], [inf, 0.0]]
        """
        return replace(self, settings={}, **parts.per_frame(self, stages, begun, history))

    @property
    def lead(self) -> tuple[int, ...]:
        """The leading shape of the levels: (), (B,) or (B, T)."""
        return tuple(self.log_snr.shape[1:])

    @property
    def memory(self) -> int:
        """M, the number of arrays that a run remembers beside its state."""
        return self.form.memory

    @property
    def stochastic(self) -> bool:
        """Whether any stage adds noise."""
        return any(self.noisy)

    @property
    def levels(self) -> Level:
        """The levels at which the denoiser is called, (stages, *lead) each, in float64."""
        return levels.level(self.log_snr, self.scaling)

    @property
    def end(self) -> Level:
        """The level of what a run returns; log_snr = inf is clean data."""
        return levels.level(_array.scalar(self.next_log_snr[-1]), self.scaling)

    def level_for(self, state: Any) -> Array:
        """Return the log-SNR at which the denoiser is called next, in the library, dtype and device of `state.z`.

        Args:
            state: a `diffcore.State` of this plan.

        Returns:
            An array (B,), or (B, T) where levels differ between frames: what a network takes.

        Raises:
            ValueError: the run is over.

        >>> import diffcore as dc
        >>> plan = dc.samplers.ddim(dc.schedules.Cosine(), steps=4)
        >>> plan.level_for(dc.start(plan, shape=(2, 3), seed=7))
        array([-20., -20.], dtype=float32)
        """
        batch, stage = state.z.shape[0], _array.known_int(state.index)
        if stage is None:
            return _array.take_row(_array.table_for(self.levels_of(batch), state.z), state.index, state.z)
        if stage >= len(self):
            raise ValueError(f"Plan.level_for: the run is over, all {len(self)} stages of {self.sampler} are done")
        level = parts.for_batch("Plan.level_for", self.log_snr[stage : stage + 1], batch)[0]
        return _layout.leading(_array.table_for(level, state.z), state.z)

    def levels_of(self, batch: int) -> Float64:
        """Return the log-SNRs of all stages for a batch: (stages, B), or (stages, B, T)."""
        return parts.for_batch("Plan.levels_of", self.log_snr, batch)

    def next_levels_of(self, batch: int) -> Float64:
        """Return the log-SNRs after all stages in the same form."""
        return parts.for_batch("Plan.next_levels_of", self.next_log_snr, batch)

    def coefficients(self, prediction: predictions.Prediction) -> Float64:
        """Return (stages, *lead, 2 + (1 + M) columns) for a kind of prediction: x-hat's coefficients of z and of the
        prediction, then the rows of `update`.

        Raises:
            ValueError: an unknown name, or x does not follow from the prediction at a level of the plan (eps and
                score at alpha = 0).

        >>> import diffcore as dc
        >>> dc.samplers.ddim(dc.schedules.Cosine(), steps=4).coefficients("eps").shape
        (4, 5)
        """
        if isinstance(prediction, str) and prediction in self.tables:
            return self.tables[prediction]
        found = self._coefficients(predictions.row_function("sample", "prediction", prediction))
        mixing = predictions.Mixing(found[..., 0], found[..., 1])
        predictions.check_solvable("sample", prediction, "x", self.levels, mixing)
        return found

    def _coefficients(self, row: predictions.RowFunction) -> Float64:
        with np.errstate(all="ignore"):
            mixing = np.stack(predictions.solve(np, self.levels, row, predictions.table()["x"]), axis=-1)
        unread = ~np.any(self.update[..., self.form.x :] != 0.0, axis=(-2, -1))  # as where a frame waits, at any level
        mixing = np.where(unread[..., None] & ~np.isfinite(mixing), 0.0, mixing)
        return np.concatenate([mixing, self.update.reshape((*self.log_snr.shape, -1))], axis=-1)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw the plan: the levels a run goes through, and the coefficients of each stage.

        Args:
            path: where to write the picture (png, svg, pdf), or None to only return the figure.

        Returns:
            A `matplotlib.figure.Figure`.

        Raises:
            ImportError: matplotlib is missing; install diffcore[plot].
        """
        return plot.plan(self, path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan to a JSON file, exactly; the file is written completely or not at all.

        >>> import diffcore as dc, tempfile, pathlib
        >>> plan = dc.samplers.ddim(dc.schedules.Cosine(), steps=4)
        >>> path = pathlib.Path(tempfile.mkdtemp(), "plan.json"); plan.save(path)
        >>> dc.Plan.load(path) == plan
        True
        """
        named = ("sampler", "scaling", "second", "ahead", *io.ARRAYS)
        io.save(path, settings=dict(self.settings), **{name: getattr(self, name) for name in named})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan that `save` wrote.

        Raises:
            ValueError: the file holds no plan, is cut short, or has a format this version does not know; a pipe or device.
            OSError: there is no such file, or it cannot be read.
        """
        return io.load(path, cls)


def _made(given: dict[str, Any]) -> Plan:
    """Return the plan of what `Plan` takes: what a pickle calls."""
    return Plan(**given)
