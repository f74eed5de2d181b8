"""`Scheduler`: a plan with the interface of diffusers' schedulers. This module imports diffusers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.outputs import BaseOutput

from diffcore import _check, samplers
from diffcore.interop import _config, _learned, _stages
from diffcore.interop._loop import FUNCTION, Loop
from diffcore.interop._stages import Stage, Stages
from diffcore.samplers._table import chosen

HALF = torch.float16, torch.bfloat16


@dataclass
class SchedulerOutput(BaseOutput):
    """What a step returns: the sample at the next timestep, and x-hat as it was used."""

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor | None = None


class Scheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """A scheduler for the pipelines of diffusers that steps by a plan: any of theirs, exactly, or a sampler of ours.

    From a scheduler of theirs, or its config,

        pipe.scheduler = Scheduler.from_config(pipe.scheduler)                       # the same images, in less time
        pipe.scheduler = Scheduler.from_config(pipe.scheduler, sampler="unipc")      # by a sampler of `samplers.table()`

    By default the class itself is read (`interop.diffusers.plan`), so that its results are its own: clipping, lower order
    at the end, repeated levels, the draws of a generator. A sampler by name runs on the schedule, timesteps, prediction, and
    clipping or thresholding of the config, and on the levels that its `set_timesteps` gives.

    The state of a run is that of an object: copies run independently, in threads too. A run begins with the first step after
    `set_timesteps`. Half precision is computed in float32.

    Args:
        scheduler: the name of the class of diffusers.
        sampler: a name of `samplers.table()` or `samplers.aliases()`; None for the class's own method.
        settings: of the sampler, such as {"order": 3}.
        config: of the class: what its constructor takes.

    Raises:
        TypeError, ValueError: an unknown name or entry; a class that is not linear in what its network returns.

    Source: https://github.com/huggingface/diffusers, `diffusers.schedulers`.

    >>> import pytest; library = pytest.importorskip("diffusers"); import torch
    >>> scheduler = Scheduler.from_config(library.DDIMScheduler(), sampler="dpm_solver_pp", settings={"order": 3})
    >>> scheduler.set_timesteps(4); scheduler.timesteps.tolist()
    [750, 500, 250, 0]
    >>> x = torch.ones(1, 3, 8, 8)
    >>> for t in scheduler.timesteps:
    ...     x = scheduler.step(0.1 * x, t, x).prev_sample
    >>> scheduler.plan
    <Plan dpm_solver_pp(order=3, eta=0.0), vp, 4 stages, memory 2>
    """

    def __init__(
        self,
        scheduler: str = "DDIMScheduler",
        sampler: str | None = None,
        settings: Mapping[str, Any] | None = None,
        **config: Any,
    ) -> None:
        kind = _config.stock(FUNCTION, scheduler)
        unknown = sorted(config.keys() - _config.defaults(kind).keys())
        if unknown:
            raise TypeError(f"{FUNCTION}: {_config.misplaced(unknown[0], scheduler, sampler)}")
        if sampler is not None:
            sampler, more = (
                samplers.aliases().get(sampler, (sampler, {})) if isinstance(sampler, str) else (sampler, {})
            )
            row = samplers.table()[chosen(FUNCTION, sampler, samplers.table())]
            takes = sorted(inspect.signature(row.make).parameters.keys() - {"schedule", "steps", "grid"})
            settings = {**more, **(settings or {})} or settings
            for name in settings or {}:
                _check.choice(FUNCTION, "settings", name, takes, hint=f"these are what {sampler} takes")
        loop = Loop(kind(**config), sampler, settings or {})
        found = dict(loop.stock.config)
        unset = sorted(set(found.pop(_config.DEFAULTS, ())) - set(_config.TRAINING))  # so that theirs keep these too
        own = {"scheduler": scheduler, "sampler": sampler, "settings": None if settings is None else dict(settings)}
        self.register_to_config(**found, **own, **({_config.DEFAULTS: unset} if unset else {}))
        self._loop = loop
        self._set: Any = None
        self._restart()

    def _restart(self) -> None:
        self.timesteps = self._loop.timesteps
        self._begin_index: int | None = None
        self._index: int | None = None
        self._first = 0
        self._run: Stages | None = None
        self._options: Any = ()
        self._memory: tuple[torch.Tensor, ...] = ()
        self._path: Any = None

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Return the scheduler of a config of diffusers or of ours, with changes.

        All values of the network's training are kept, those at the defaults of their class included.

        Args:
            config: of a scheduler; or the scheduler itself, which also says its class.
            return_unused_kwargs: whether changes that are no entries are returned instead of refused.
            kwargs: changes; `scheduler`, `sampler` and `settings` as for the constructor.
        """
        function = f"{FUNCTION}.from_config"
        named = {"_class_name": type(config).__name__} if isinstance(config, SchedulerMixin) else {}
        config = config.config if named else config
        if not isinstance(config, Mapping):
            raise _check.error(TypeError, function, "config", "be the config of a scheduler, or a scheduler", config)
        given, left = _config.given(function, {**config, **named}, kwargs)
        if left and not return_unused_kwargs:
            raise TypeError(f"{function}: {_config.misplaced(min(left), given['scheduler'], given['sampler'])}")
        found = cls(**given)
        rest = {key: value for key, value in config.items() if key not in found.config and key != _config.DEFAULTS}
        found.register_to_config(**(rest | ({"_class_name": cls.__name__} if "_class_name" in rest else {})))
        return (found, left) if return_unused_kwargs else found

    @property
    def _internal_dict(self) -> Any:
        """The config, where ConfigMixin has it; pipelines change some of its values by putting another one in its place."""
        if "_internal_dict" not in self.__dict__:
            raise AttributeError("_internal_dict")
        return self.__dict__["_internal_dict"]

    @_internal_dict.setter
    def _internal_dict(self, config: Any) -> None:
        self.__dict__["_internal_dict"] = config
        if "_loop" in self.__dict__:
            self._loop = self._loop.changed(config)

    def __getattr__(self, name: str) -> Any:
        """Return what the scheduler of the config has, such as `sigmas`, `betas` or `alphas_cumprod`."""
        loop = self.__dict__.get("_loop")
        if loop is not None and not name.startswith("__") and loop.has(name):
            return loop.get(name)
        return super().__getattr__(name)

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])

    compatibles = property(lambda self: self._loop.stock.compatibles, doc="The classes of diffusers for this config.")

    order = property(lambda self: self._loop.order, doc="How many timesteps an interval between two levels has.")

    begin_index = property(lambda self: self._begin_index, doc="The index of the first timestep, where it was set.")

    step_index = property(lambda self: self._index, doc="The index of the next timestep; None before the first step.")

    plan = property(lambda self: self._loop.whole(), doc="The plan of all timesteps.")

    @property
    def init_noise_sigma(self) -> Any:
        """The standard deviation of the noise that a run begins with."""
        return getattr(self._loop.stock, "init_noise_sigma", 1.0)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Let the run begin at another timestep than the first, as for image to image."""
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        **more: Any,
    ) -> None:
        """Set the timesteps of a run, by their number, themselves, or their noise levels, and forget the run before.

        Args:
            num_inference_steps: their number.
            device: of `timesteps`.
            timesteps, sigmas: instead of a number, where the class takes them; a sampler by name takes them with every class.
            mu: the shift of a flow.
            more: further arguments of the class.
        """
        given = {"num_inference_steps": num_inference_steps, "timesteps": timesteps, "sigmas": sigmas, "mu": mu, **more}
        given = {name: value for name, value in given.items() if value is not None}
        key = (str(device), *((name, np.asarray(value).tobytes()) for name, value in given.items()))
        if key != self._set:
            self._loop, self._set = self._loop.reset(device, **given), key
        self._restart()

    def index_for_timestep(self, timestep: Any, schedule_timesteps: Any = None) -> int:
        """Return the index of a timestep; of the second where there are several, so that no interval is left out."""
        return self._loop.index(timestep, schedule_timesteps)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        eta: float | None = None,
        use_clipped_model_output: bool | None = None,
        generator: Any = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
        **more: Any,
    ) -> Any:
        """Return the sample at the next timestep, given what the network returns at this one.

        Args:
            model_output: the prediction, of the shape of `sample`.
            timestep: the next one; classes such as DDIM and DDPM, which go by it, take any.
            sample: (B, ...), the state.
            eta, use_clipped_model_output: of the class, where it has them, else without effect, as in the pipelines; `eta` of a
                sampler by name, where it has one and this is not 0.
            generator: of the noise; one, or a list with one for each sample.
            variance_noise: noise instead of drawn noise.
            return_dict: whether to return an object with `prev_sample` and `pred_original_sample`, or a tuple.
            more: further arguments of the class, such as s_churn; with per_token_timesteps, the class takes the step.

        Raises:
            ValueError: the run is over; another timestep than the next one, where the class has a memory; a model output of
                another shape, but for variances that the config says are learned.
        """
        options: Any = ()
        if more.get("per_token_timesteps") is not None and "per_token_timesteps" in self._loop.takes:
            given = {
                "model_output": model_output,
                "timestep": timestep,
                "sample": sample,
                "generator": generator,
                **more,
            }
            found, self._index = self._loop.of_tokens(self._begin_index, self._index, return_dict=return_dict, **given)
            return found
        if eta is not None or use_clipped_model_output is not None or more:
            options = self._loop.options(eta, use_clipped_model_output, more)
        variances: Any = None
        if self._loop.variances is not None:
            model_output, variances = self._loop.split(model_output, sample)
        stages, stage = self._stage(timestep, options, model_output, sample)
        z, y = sample, model_output
        if z.dtype is not y.dtype or z.dtype in HALF:
            work = torch.promote_types(torch.promote_types(z.dtype, y.dtype), torch.float32)
            z, y = z.to(work), y.to(work)
        arrays = [z, y, None, None, *self._memory]
        pair = return_dict or stages.length > 1
        x: Any = None
        if (pair and stage.second is None) or stage.keeps_x or stage.clips:
            x = _stages.total(stage.x, arrays)
        if stage.clips:
            x = arrays[_stages.X] = self._loop.clip(x)
        if stage.draws:
            arrays[_stages.NOISE] = self._noise(stage, model_output, sample, generator, variance_noise).to(z.dtype)
            if stage.ends is not None:
                arrays[_stages.NOISE] = self._loop.deviation(stage, variances.to(z.dtype)) * arrays[_stages.NOISE]
        after = _stages.total(stage.rows[0], arrays)
        if stage.keeps_x and len(stage.rows) == 2:
            self._memory = (x,)
        elif len(stage.rows) > 1:
            rows = stage.rows[1:]
            self._memory = tuple([x if row is stage.x else _stages.total(row, arrays) for row in rows])
        if self._index is not None:
            self._index += 1
        if after is sample or after is model_output:
            after = after.clone()
        if z is not sample or y is not model_output:
            after = after.to(self._loop.dtypes(sample.dtype, model_output.dtype)[0])
        if not pair:
            return (after,)
        second = x if stage.second is None else _stages.total(stage.second, arrays)
        second = second if second.dtype is after.dtype else second.to(after.dtype)
        if not return_dict:
            return after, second
        return SchedulerOutput(after, second) if stages.output is None else stages.output(after, second)

    def _noise(self, stage: Stage, output: Any, sample: Any, generator: Any, given: Any) -> torch.Tensor:
        if given is not None:
            if generator is not None:
                raise ValueError(f"{FUNCTION}.step: give `generator` or `variance_noise`, not both")
            return given  # type: ignore[no-any-return]
        if self._path is None and any(draw.between for draw in stage.draws):
            self._path = self._loop.path(output, sample, generator)
        return self._loop.noise(stage, output, sample, generator, self._path)

    def _stage(self, timestep: Any, options: Any, model_output: Any, sample: Any) -> tuple[Stages, Stage]:
        """Return the stage of this step; it is worked out where it is not known."""
        loop, run = self._loop, self._run
        if run is not None and self._index is not None and options == self._options and loop.in_order:
            at = self._index - self._first
            if at < len(run.rows):
                return run, run.rows[at]
        _learned.check_shape(f"{FUNCTION}.step", model_output, sample)
        if loop.apart and not loop.counts and (found := loop.stage(None, timestep, options)):
            return found, found.rows[0]
        if self._index is None:
            self._first = self._index = self._begin(timestep)
        elif options != self._options and self._memory:
            raise ValueError(f"{FUNCTION}.step: {dict(options)} must be the same in all steps of a run")
        elif not loop.in_order and not self._expected(timestep):
            raise ValueError(
                f"{FUNCTION}.step: timestep {float(timestep):g} must be the next one, number {self._index} of `timesteps`; call "
                f"set_timesteps to begin again"
            )
        if self._index >= len(loop.times):
            raise ValueError(f"{FUNCTION}.step: all {len(loop.times)} steps are done; call set_timesteps")
        if loop.apart and (found := loop.stage(self._index, timestep, options)):
            return found, found.rows[0]
        if self._run is None or options != self._options:
            self._run, self._options = loop.stages(self._first, options), options
        at = self._index - self._first
        if at >= len(self._run.rows):
            raise ValueError(
                f"{FUNCTION}.step: what step number {self._index} of a {type(self._loop.stock).__name__} returns is not finite"
            )
        return self._run, self._run.rows[at]

    def _begin(self, timestep: Any) -> int:
        return self._loop.index(timestep) if self._begin_index is None else self._begin_index

    def _expected(self, timestep: Any) -> bool:
        place = self._loop.place(timestep)
        return place == self._index if place is not None else bool(timestep == self._loop.times[self._index or 0])

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """Return the input of the network: the sample, times 1 / sqrt(sigma^2 + 1) where the samples are x + sigma eps."""
        loop = self._loop
        if loop.kind not in ("ve", "edm"):
            return sample
        index = self._begin(timestep) if self._index is None else self._index
        run = self._run and self._run.rows[min(index - self._first, len(self._run.rows) - 1)]
        return sample * loop.input_scale(index, run.log_snr if run else None)

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: Any) -> torch.Tensor:
        """Return data with noise, alpha x + sigma eps at timesteps (B,)."""
        return self._loop.noised(original_samples, noise, timesteps, self._begin_index, self._index)  # type: ignore[no-any-return]

    def scale_noise(self, sample: torch.Tensor, timestep: Any, noise: torch.Tensor) -> torch.Tensor:
        """Return data with noise at timesteps (B,), under the name that pipelines of flows call."""
        own = self._loop.now(self._begin_index, self._index)
        if self._loop.plan is None and hasattr(own, "scale_noise"):
            return own.scale_noise(sample, timestep, noise)  # type: ignore[no-any-return]
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: Any) -> torch.Tensor:
        """Return v = alpha eps - sigma x at timesteps (B,)."""
        return self._loop.stock.get_velocity(sample, noise, timesteps)  # type: ignore[no-any-return]
