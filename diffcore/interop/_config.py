"""Which class of diffusers a config belongs to, and what of it that class takes."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import diffusers
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from diffcore import _check, samplers

COMMON = (
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    "UniPCMultistepScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
)
"""The classes that are named first where several take an entry."""

DEFAULTS = "_use_default_values"
"""The entry of a config with the names of those values that nobody gave."""

OWN = ("scheduler", "sampler", "settings")
"""The entries of our configs that no scheduler of diffusers has."""

TRAINING = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
    "snr_shift_scale",
    "sigma_data",
)
"""What belongs to the network: another class must not replace it by a default of its own."""


def stock(function: str, name: object) -> type[Any]:
    """Return the class of diffusers of that name; raise for what is no scheduler."""
    found = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(found, type) and issubclass(found, SchedulerMixin)):
        must = "be the name of a scheduler of diffusers, such as 'DDIMScheduler'"
        hint = "of a scheduler or a config it is Scheduler.from_config(...)"
        hint = hint if isinstance(name, SchedulerMixin | Mapping) else ""
        raise _check.error(ValueError if isinstance(name, str) else TypeError, function, "scheduler", must, name, hint)
    return found


def kinds() -> dict[str, type[Any]]:
    """Return the schedulers of diffusers by their names."""
    names = [name for name in dir(diffusers) if name.endswith("Scheduler") and not name.startswith("Flax")]
    found = {name: getattr(diffusers, name) for name in names}
    return {name: kind for name, kind in found.items() if isinstance(kind, type) and issubclass(kind, SchedulerMixin)}


def misplaced(entry: str, scheduler: str, sampler: object) -> str:
    """Return what to say of an entry that a class does not take: where it belongs, and else which one may be meant."""
    row = samplers.table().get(sampler) if isinstance(sampler, str) else None
    takes = sorted(defaults(kinds()[scheduler]))
    takers = [name for name in COMMON if name in kinds() and entry in defaults(kinds()[name])]
    takers = takers or [name for name, kind in kinds().items() if entry in defaults(kind)]
    if entry[:1] == "_":
        way = "of a config it is Scheduler.from_config(config)"
    elif row is not None and entry in inspect.signature(row.make).parameters:
        way = f"it is a setting of {sampler}: settings={{{entry!r}: ...}}"
    elif takers:
        way = f"{' and '.join(takers[:3])} {'takes' if len(takers) == 1 else 'take'} it: scheduler={takers[0]!r}"
    elif near := difflib.get_close_matches(entry, [*takes, *OWN], n=1):
        way = f"did you mean `{near[0]}`?"
    else:
        way = f"it takes {', '.join(takes)}; settings of a sampler go in settings={{...}}"
    return _check.cut(f"a {scheduler} takes no `{entry}`; {way}", 400)


def defaults(kind: type[Any]) -> dict[str, Any]:
    """Return what the constructor of a class takes, with its default values."""
    taken = list(inspect.signature(kind.__init__).parameters.values())[1:]
    return {one.name: one.default for one in taken if one.kind is not one.VAR_KEYWORD}


def owner(function: str, config: Mapping[str, Any]) -> str:
    """Return the name of the class that a config belongs to: the one it names, or the only one that has its entries.

    Raises:
        ValueError: none has them, or several.
    """
    named = config.get("_class_name")
    if isinstance(named, str) and named != "Scheduler" and hasattr(diffusers, named):
        return named
    if "scheduler" in config:
        return str(config["scheduler"])
    entries = {name for name in config if not name.startswith("_")} - set(OWN)
    takes = {name: set(defaults(kind)) for name, kind in kinds().items()}
    fits = [name for name, taken in takes.items() if taken == entries]
    if not fits and entries <= takes["DDIMScheduler"]:
        return "DDIMScheduler"
    fits = [name for name in fits if name.replace("Parallel", "") not in fits or "Parallel" not in name]
    if len(fits) != 1:
        could = f"it could be of {' or '.join(fits)}" if fits else "no scheduler of diffusers has its entries"
        raise ValueError(
            f"{function}: `config` does not name its class, and {could}; give the scheduler itself instead of its config, or "
            f"scheduler='...'"
        )
    return fits[0]


def given(
    function: str, config: Mapping[str, Any], changes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what `Scheduler` is made with for a config and changes of it, and those changes that it does not take."""
    left = dict(changes)
    name = left.pop("scheduler", None) or owner(function, config)
    kind = stock(function, name)
    taken = {entry: left.pop(entry) for entry in defaults(kind).keys() & left.keys()}
    own = {entry: left.pop(entry, config.get(entry)) for entry in ("sampler", "settings")}
    return {"scheduler": name, **own, **values(config, kind, same(config, kind)), **taken}, left


def same(config: Mapping[str, Any], kind: type[Any]) -> bool:
    """Return whether a config is that of a class, or of ours for it: by the class that it names, or by its entries."""
    named = config.get("_class_name", "")
    if named:
        return named in (kind.__name__, "Scheduler")
    return {name for name in config if not name.startswith("_")} - set(OWN) == set(defaults(kind))


def values(config: Mapping[str, Any], kind: type[Any], same: bool) -> dict[str, Any]:
    """Return what of a config the constructor of a class is to be given.

    Of the values that nobody gave, another class than the config's own takes those of the network's training, which theirs
    leaves to it, and which it may have other defaults for. Pipelines change some of the others without giving them.
    """
    unset, own = config.get(DEFAULTS, ()), defaults(kind)
    given = {name: value for name, value in config.items() if name in own}
    return {
        name: value
        for name, value in given.items()
        if name not in unset or ((same or name in TRAINING) and value != own[name])
    }
