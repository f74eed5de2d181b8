"""A scheduler of diffusers with its timesteps set: the stages of its steps, or of a sampler of ours in its place."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch.overrides import TorchFunctionMode

from diffcore import levels, samplers
from diffcore.interop import _alone, _learned, _reading, _schedulers, _stages
from diffcore.interop._stages import Stage, Stages
from diffcore.plan import Plan

FUNCTION = "interop.diffusers.Scheduler"


class Loop:
    """What steps need, beside the state of a run. It stays as it is, so that copies of a `Scheduler` share it.

    Args:
        stock: the scheduler of diffusers, with its timesteps set.
        sampler: the name of ours that takes its place; None for its own method.
        settings: of ours.
        device: of the timesteps.
        grid: of ours; None before timesteps are set.
    """

    def __init__(
        self, stock: Any, sampler: str | None, settings: Mapping[str, Any], device: Any = None, grid: Any = None
    ) -> None:
        self.stock, self.sampler, self.settings = stock, sampler, settings
        self.kind, self.prediction = _schedulers.kind(stock), _schedulers.prediction(stock)
        self.takes = {name: one.default for name, one in inspect.signature(stock.step).parameters.items()}
        self.variances = _learned.kind(stock, unused=sampler is not None)
        self.counts = hasattr(stock, "_step_index")
        """Whether it counts its steps; others go by their timesteps."""
        self.in_order = self.counts or sampler is not None
        """Whether the timestep of a step is not read, after the first."""
        self.apart = sampler is None
        """Whether its steps may be read one by one; it turns out in the first whether they have no memory."""
        self.timesteps = stock.timesteps
        self.plan: Plan | None = None
        if sampler is not None and grid is not None:
            self.grid = grid
            self.plan = self._made(self.grid)
            times = _schedulers.timesteps_of(stock, self.plan.log_snr)
            whole = np.abs(times - times.round()) < 1e-6
            kept = torch.int64 if whole.all() and not stock.timesteps.is_floating_point() else torch.float32
            self.timesteps = torch.as_tensor(np.where(whole, times.round(), times)).to(device=device, dtype=kept)
        self.times = [] if self.timesteps is None else self.timesteps.tolist()
        self._known: dict[Any, Stages] = {}
        self._output: tuple[Any, int] | None = None
        self._dtypes: dict[Any, tuple[torch.dtype, torch.dtype]] = {}

    def reset(self, device: Any, **given: Any) -> Loop:
        """Return the loop with other timesteps, set by what `set_timesteps` is given."""
        stock = copy.copy(self.stock)  # whose lists are made anew
        takes = inspect.signature(stock.set_timesteps).parameters
        every = any(one.kind is one.VAR_KEYWORD for one in takes.values())
        unknown = [] if every else [name for name in given if name not in takes]
        if not unknown:
            stock.set_timesteps(**given, **({"device": device} if "device" in takes else {}))
            return Loop(stock, self.sampler, self.settings, device, _schedulers.grid(stock) if self.sampler else None)
        if self.sampler is None or unknown[0] not in ("timesteps", "sigmas"):
            raise ValueError(
                f"{FUNCTION}.set_timesteps: a {type(stock).__name__} takes no `{unknown[0]}`; give num_inference_steps, or use a "
                f"`sampler` of ours, which takes timesteps and sigmas"
            )
        grid = _schedulers.grid(stock, **{unknown[0]: given[unknown[0]]})
        return Loop(stock, self.sampler, self.settings, device, grid)

    def changed(self, config: Mapping[str, Any]) -> Loop:
        """Return the loop with those values of a config that are other than the scheduler's."""
        new = {name: config[name] for name, value in self.stock.config.items() if name in config and name[0] != "_"}
        new = {name: value for name, value in new.items() if value is not self.stock.config[name]}
        if not new:
            return self
        stock = copy.copy(self.stock)
        stock.register_to_config(**new)
        return Loop(
            stock,
            self.sampler,
            self.settings,
            self.timesteps.device if self.plan else None,
            self.grid if self.plan else None,
        )

    @property
    def order(self) -> int:
        """How many timesteps an interval has."""
        if self.sampler is None:
            return int(getattr(self.stock, "order", 1))
        return round(samplers.table()[self.sampler].calls(1000) / 1000)

    def has(self, name: str) -> bool:
        """Return whether the scheduler of diffusers has an attribute, without asking for it."""
        return name in vars(self.stock) or hasattr(type(self.stock), name)

    def get(self, name: str) -> Any:
        """Return an attribute of the scheduler of diffusers; `sigmas` are those of our plan, one for each timestep and the end."""
        if name != "sigmas" or self.plan is None:
            return getattr(self.stock, name)
        log_snr = np.append(self.plan.log_snr, self.plan.next_log_snr[-1])
        sigmas = levels.level(log_snr, "flow").sigma if self.kind == "flow" else np.exp(-0.5 * log_snr)
        return self.stock.sigmas.new_tensor(sigmas)

    def whole(self) -> Plan:
        """Return the plan of all timesteps."""
        if self.plan is None and self.sampler is not None:
            raise ValueError(f"{FUNCTION}: the plan of {self.sampler} needs timesteps; call set_timesteps")
        return self.plan or _reading.read(FUNCTION, self.stock, self.timesteps).plan

    def place(self, timestep: Any) -> int | None:
        """Return the place of a timestep that is a view of them, without waiting for the device; None for anything else."""
        times = self.timesteps
        if (
            not isinstance(timestep, torch.Tensor)
            or timestep.dtype is not times.dtype
            or timestep.device != times.device
        ):
            return None
        place, rest = divmod(timestep.data_ptr() - times.data_ptr(), times.element_size())
        return place if not rest and 0 <= place < times.numel() and times.is_contiguous() else None

    def index(self, timestep: Any, times: Any = None) -> int:
        """Return the index of a timestep; of the second where there are several, as theirs do."""
        place = self.place(timestep) if times is None else None
        if place is not None and not self.counts:
            return place
        if place is not None:
            hits = [k for k, time in enumerate(self.times) if time == self.times[place]]
        else:
            hits = ((self.timesteps if times is None else times) == timestep).nonzero().flatten().tolist()
        if hits:
            return int(hits[1 if len(hits) > 1 and self.counts else 0])
        if self.sampler is None and self.counts:
            return int(self.stock.index_for_timestep(timestep))  # some take the last, some raise
        raise ValueError(f"{FUNCTION}: timestep {float(timestep):g} is not one of `timesteps`")

    def options(self, eta: Any, use_clipped: Any, options: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
        """Return the arguments of a step that are not at their defaults; those that it lacks have no effect."""
        if self.sampler is not None:
            takes = inspect.signature(samplers.table()[self.sampler].make).parameters
            return (("eta", eta),) if eta and "eta" in takes else ()
        unknown = [name for name in options if name not in self.takes]
        if unknown:
            raise TypeError(f"{FUNCTION}.step: a {type(self.stock).__name__} takes no `{unknown[0]}`")
        given = {"eta": eta, "use_clipped_model_output": use_clipped, **options}
        given = {name: value for name, value in given.items() if value is not None and name in self.takes}
        given = {name: value.item() if isinstance(value, torch.Tensor) else value for name, value in given.items()}
        return tuple(sorted((name, value) for name, value in given.items() if value != self.takes[name]))

    def stages(self, first: int, options: Any) -> Stages:
        """Return the stages from one of the timesteps on."""
        key = first, options
        if key not in self._known:
            self._known[key] = _stages.stages(FUNCTION, self._read(first, dict(options)), self.prediction)
        return self._known[key]

    def _read(self, first: int, options: Mapping[str, Any]) -> _reading.Read:
        if self.plan is None and self.sampler is not None:
            raise ValueError(f"{FUNCTION}.step: a run by {self.sampler} needs timesteps; call set_timesteps")
        if self.plan is None:
            own = self.now(first, None)
            times = own.timesteps[first:]
            times = times[: _reading.finite(own, times, options)]
            return _reading.read(FUNCTION, own, times, options, apart=True)
        plan = self.plan
        if first or options:
            plan = self._made(self.grid[first // self.order :], **options)
            if not np.array_equal(plan.log_snr, self.plan.log_snr[first:]):
                raise ValueError(f"{FUNCTION}.step: {plan.sampler} cannot begin at timestep number {first}")
        return _stages.made(plan, self._clips())

    def _clips(self) -> bool:
        """Return whether the class clips: some have the setting and ignore it."""
        if not any(self.stock.config.get(switch) for switch in _reading.SWITCHES):
            return False
        own = _learned.fixed(self.stock) if self.variances else copy.copy(self.stock)
        own.set_timesteps(2)
        return _reading.read(FUNCTION, own, own.timesteps[-1:], apart=True).clips[0] is not None

    def _made(self, grid: Any, **options: Any) -> Plan:
        assert self.sampler is not None
        schedule = _schedulers.schedule(FUNCTION, self.stock)
        return samplers.make(self.sampler, schedule, grid=grid, **{**self.settings, **options})

    def stage(self, index: int | None, timestep: Any, options: Any) -> Stages | None:
        """Return the one stage of step number `index`, or that at a timestep; None where steps have a memory."""
        at = self.place(timestep) if index is None else index
        time = int(timestep) if at is None else self.times[at]
        key = (time if index is None else at, options, "alone")
        if key not in self._known:
            own = self.stock if index is None else self.now(index, None)
            at_time, more = torch.tensor(time, dtype=self.stock.timesteps.dtype), dict(options)
            if "prev_timestep" in self.takes:  # UnCLIP's, which takes t - 1 where none is given
                more.setdefault("prev_timestep", None)
            ends = (1.0, -1.0 if self.variances == "learned_range" else 1.0) if self.predicts else (None,)
            reads = [_alone.alone(FUNCTION, own, at_time, more, self._output, end) for end in ends]
            if (read := reads[0]) is None:
                self.apart = False
                return None
            self._output = read.output, read.length
            scaling = _schedulers.SCALINGS[self.kind]
            self._known[key] = _stages.single(FUNCTION, read, self.prediction, scaling, *reads[1:])
        return self._known[key]

    @property
    def predicts(self) -> bool:
        """Whether its network predicts the variances of its noise."""
        return self.variances in _learned.LEARNED

    def input_scale(self, index: int, log_snr: float | None) -> float:
        """Return by what the input of the network is multiplied in a step, whose level may be known."""
        if log_snr is None:
            log_snr = float(self.plan.log_snr[index]) if self.plan else -2.0 * np.log(float(self.stock.sigmas[index]))
        scale: Any = _schedulers.input_scale(self.stock, np.float64(log_snr))
        return float(scale)

    def split(self, output: Any, sample: Any) -> tuple[Any, Any]:
        """Return the prediction, and the variances beside it or None, of a network that has them."""
        return _learned.split(f"{FUNCTION}.step", str(self.variances), output, sample)

    def of_tokens(self, begin: int | None, index: int | None, **step: Any) -> tuple[Any, int]:
        """Return what a step with a timestep for each token returns, which the class itself makes, and the next index."""
        if self.sampler is not None:
            raise ValueError(
                f"{FUNCTION}.step: {self.sampler} takes no `per_token_timesteps`; use the scheduler without `sampler`, or "
                f"plan.per_frame with dc.sample"
            )
        own = self.now(begin, index)
        return own.step(**step), own._step_index

    def deviation(self, stage: Stage, variances: Any) -> Any:
        """Return by what the noise of a stage is multiplied, given what its network predicts."""
        assert stage.ends is not None
        return _learned.deviation(str(self.variances), stage.ends, variances)

    def now(self, begin: int | None, index: int | None) -> Any:
        """Return the scheduler of diffusers as it would be in a run that began somewhere and is somewhere."""
        own = copy.copy(self.stock)
        if self.counts:
            own._begin_index, own._step_index = begin, index
        return own

    def noised(self, x: Any, noise: Any, timesteps: Any, begin: int | None, index: int | None) -> Any:
        """Return data with noise at timesteps (B,), in a run that began somewhere and is somewhere."""
        if self.plan is None or self.kind == "table":
            return self.now(begin, index).add_noise(x, noise, timesteps)
        here = begin if index is None else index
        places = [self.index(one) if here is None or begin is None else here for one in timesteps]
        at = levels.level(np.append(self.plan.log_snr, self.plan.next_log_snr[-1])[places], self.plan.scaling)
        alpha, sigma = (torch.as_tensor(part, device=x.device).to(x.dtype) for part in (at.alpha, at.sigma))
        shape = (-1,) + (1,) * (x.ndim - 1)
        return alpha.reshape(shape) * x + sigma.reshape(shape) * noise

    def clip(self, x: torch.Tensor) -> torch.Tensor:
        """Return x-hat clipped or thresholded."""
        if self.stock.config.get("thresholding"):
            return self.stock._threshold_sample(x)  # type: ignore[no-any-return]
        return x.clamp(-self.stock.config.clip_sample_range, self.stock.config.clip_sample_range)

    def dtypes(self, sample: torch.dtype, output: torch.dtype) -> tuple[torch.dtype, torch.dtype]:
        """Return the dtypes of what a step returns and of the noise that it draws, for a sample and a network's output."""
        if self.sampler is not None:
            return sample, output
        if (sample, output) not in self._dtypes:
            own, seen = copy.deepcopy(_reading.on_host(self.stock)), _Asked()
            x = torch.zeros(1, 1, 1, 1, device=own.timesteps.device)
            left = {"timestep_back": None, "old_pred_original_sample": None, "prev_timestep": 0}
            more: dict[str, Any] = {name: value for name, value in left.items() if name in self.takes}
            if "generator" in self.takes:
                more["generator"] = torch.Generator(x.device)  # and not the global one
            if hasattr(own, "noise_sampler"):
                own.noise_sampler = lambda *_: x.to(output)
            with seen:
                y = torch.cat([x.to(output)] * (1 + self.predicts), dim=1)
                found = own.step(y, timestep=own.timesteps[0], sample=x.to(sample), return_dict=False, **more)
            self._dtypes[sample, output] = found[0].dtype, seen.dtype or output
        return self._dtypes[sample, output]

    def noise(self, stage: Stage, output: Any, sample: Any, generator: Any, path: Any) -> torch.Tensor:
        """Return the noise of a stage, drawn as the class draws it; `path` is the Brownian path of the run."""
        found: Any = None
        for draw in stage.draws:
            if draw.between:
                noise = path(*draw.between)
            else:
                dtype = self.dtypes(sample.dtype, output.dtype)[1]
                noise = randn_tensor(output.shape, generator=generator, device=output.device, dtype=dtype)
            if draw.weight:
                noise = noise if draw.weight == 1.0 else noise * draw.weight
                found = noise if found is None else found + noise
        return torch.zeros_like(output) if found is None else found

    def path(self, output: Any, sample: Any, generator: Any) -> Any:
        """Return a Brownian path, as the class makes it in its first step."""
        own, config = self.stock, self.stock.config
        make = sys.modules[type(own).__module__].BrownianTreeNoiseSampler
        if "noise_sampler_seed" in config:
            low, high = own.sigmas[own.sigmas > 0].min().item(), own.sigmas.max().item()
            return make(sample, low, high, config.noise_sampler_seed)
        several = isinstance(generator, list)
        seeds = [one.initial_seed() for one in generator] if several else generator and generator.initial_seed()
        return make(output, sigma_min=config.sigma_min, sigma_max=config.sigma_max, seed=seeds)


class _Asked(TorchFunctionMode):
    """In what dtype noise is drawn."""

    dtype: torch.dtype | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func in (torch.randn, torch.randn_like):
            self.dtype = found.dtype
        return found
