"""A model spread over the ranks (FSDP2) in units, of which one is gathered at a time, beside the root.

A unit is a module whose parameters the ranks gather when its forward or backward pass begins, and give up when it ends.
The root has the parameters that are in no unit; they stay gathered from the first to the last layer.
"""

import difflib
import fnmatch
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from trainbox.errors import HyperparameterError
from trainbox.torch.parallel.filling import Filling, Weights, is_needed

#: What a script names: a pattern of module names (`model.layers.*`), or a class.
Asked = str | type[nn.Module]
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


class Unit(msgspec.Struct, frozen=True):
    """Parameters that are gathered together: those of a module by name, without those of units inside it."""

    #: "" is the root.
    name: str
    #: Of its parameters when they are gathered.
    size: int


def plan_units(model: nn.Module, asked: Sequence[Asked], dtype: torch.dtype | None = None) -> tuple[Unit, ...]:
    """Choose what is gathered together; the root comes last.

    Without names: the members of lists of layers, and the modules outside of these lists. Modules whose parameters are
    also used elsewhere (tied embeddings) are left to the root, which all of them see.

    Args:
        model: Not sharded yet; nothing is changed.
        asked: Names or classes of the modules to be units.
        dtype: Of gathered parameters, if not their own.

    Raises:
        HyperparameterError: No module has such a name or class, or it cannot be a unit.
    """
    names = _named_units(model, asked) if asked else tuple(_find_units(model, "", _tied(model)))
    sizes = dict.fromkeys(sorted(names, key=lambda name: name.count("."), reverse=True), 0) | {"": 0}
    for name, parameter in model.named_parameters():
        itemsize = dtype.itemsize if dtype and parameter.is_floating_point() else parameter.element_size()
        sizes[next(unit for unit in sizes if _contains(unit, name))] += parameter.numel() * itemsize
    return tuple(Unit(name, size) for name, size in sizes.items())


def peak(units: Sequence[Unit]) -> int:
    """The bytes of parameters that are gathered at once, at most: the root, a unit, and in the backward pass the next.

    FSDP2 fetches the next unit while one computes its gradients.
    """
    *inner, root = units
    return root.size + sum(sorted((unit.size for unit in inner), reverse=True)[:2])


def describe(units: Sequence[Unit]) -> str:
    """How much is gathered at once, for the log."""
    *inner, root = units
    if not inner:
        return f"in one unit of {_bytes(root.size)}, which is gathered whole; units=… can name its layers"
    largest = max(inner, key=lambda unit: unit.size)
    return (
        f"in {len(inner)} units and a root of {_bytes(root.size)}; the largest unit, {largest.name}, has "
        f"{_bytes(largest.size)}; gathered at once at most {_bytes(peak(units))}, the next unit included"
    )


def check_units(asked: Sequence[Asked], *, sharded: bool) -> None:
    """Whether units are named where there are such.

    Raises:
        HyperparameterError: They are named for a model that is not spread over the ranks.
    """
    if asked and not sharded:
        raise HyperparameterError("wrap: units= are those of a sharded model", hint="add sharded=True, or leave it out")


def place(
    model: nn.Module,
    units: Sequence[Unit],
    device: torch.device,
    weights: Weights | None,
    policy: MixedPrecisionPolicy | None,
    *,
    ranks: int,
) -> nn.Module:
    """Bring a model to the device, a unit at a time where it is filled or spread over the ranks.

    Args:
        model: It may be on the device `meta`.
        units: In which order it is filled, on any number of ranks; what is gathered together.
        device: Where it goes.
        weights: What fills it.
        policy: How FSDP2 computes; None leaves the model whole.
        ranks: Of the job.

    Raises:
        HyperparameterError: Something on `meta` cannot be filled, or nothing is on `meta`.
        DataError: The weights are not those of this model.
    """
    filling = Filling(model, weights, device) if weights is not None or is_needed(model) else None
    mesh = init_device_mesh(device.type, (ranks,)) if policy else None
    for unit in units if filling or policy else ():
        module = model.get_submodule(unit.name)
        if filling:
            filling.fill(module)
        if policy:
            fully_shard(module, mesh=mesh, mp_policy=policy)  # moves it to the device as it cuts it
    return model if policy else model.to(device)


def _find_units(module: nn.Module, prefix: str, tied: Sequence[Sequence[str]]) -> Iterator[str]:
    for name, child in module.named_children():
        path = prefix + name
        if not any(True for _ in child.parameters()):
            continue
        is_layer = isinstance(module, nn.ModuleList) and not isinstance(child, _CONTAINERS)
        divided = isinstance(child, _CONTAINERS) or (not is_layer and _has_layers(child))
        if divided or any(_shares(path, homes) for homes in tied):
            yield from _find_units(child, f"{path}.", tied)
        else:
            yield path


def _has_layers(module: nn.Module) -> bool:
    """Whether it holds a list with at least two modules of one class that have parts of their own."""
    for inner in module.modules():
        if isinstance(inner, nn.ModuleList | nn.Sequential):
            kinds = Counter(type(child) for child in inner.children() if any(True for _ in child.children()))
            if max(kinds.values(), default=0) > 1:
                return True
    return False


def _named_units(model: nn.Module, asked: Sequence[Asked]) -> tuple[str, ...]:
    modules = {name: module for name, module in model.named_modules() if name}
    found: dict[str, nn.Module] = {}
    for one in asked:
        matching = {name: module for name, module in modules.items() if _matches(one, name, module)}
        if not matching:
            raise _unknown(one, modules)
        found |= matching
    for name, module in found.items():
        if isinstance(module, nn.ModuleList | nn.ModuleDict):
            raise HyperparameterError(
                f"wrap: the unit {name!r} is a {type(module).__name__}, which is never called itself",
                hint=f"name its members: units=({name + '.*'!r},)",
            )
    for homes in _tied(model):
        for name in found:
            if _shares(name, homes):
                outside = next(home for home in homes if not _contains(name, home))
                raise HyperparameterError(
                    f"wrap: the unit {name!r} shares a parameter with a module outside of it ({outside})",
                    hint="leave both to the root: name units without them",
                )
    return tuple(name for name, module in found.items() if any(True for _ in module.parameters()))


def _matches(asked: Asked, name: str, module: nn.Module) -> bool:
    if not isinstance(asked, str):
        return isinstance(module, asked)
    pattern, parts = asked.split("."), name.split(".")
    return len(pattern) == len(parts) and all(map(fnmatch.fnmatchcase, parts, pattern))


def _unknown(asked: Asked, modules: dict[str, nn.Module]) -> HyperparameterError:
    if isinstance(asked, str):
        known, what = dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in modules), f"is named {asked!r}"
        given = asked
    else:
        known, what = dict.fromkeys(type(module).__name__ for module in modules.values()), f"is a {asked.__name__}"
        given = asked.__name__
    close = difflib.get_close_matches(given, known, n=1)
    return HyperparameterError(
        f"wrap: no module of the model {what}" + (f" - did you mean {close[0]!r}?" if close else ""),
        hint="units are patterns of the names in model.named_modules(), or classes of modules",
    )


def _tied(model: nn.Module) -> list[list[str]]:
    """The names of each parameter that has several."""
    homes: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        homes.setdefault(id(parameter), []).append(name)
    return [names for names in homes.values() if len(names) > 1]


def _shares(unit: str, homes: Sequence[str]) -> bool:
    """Whether a parameter with these names is in a unit and outside of it as well."""
    return len({_contains(unit, home) for home in homes}) > 1


def _contains(unit: str, name: str) -> bool:
    return not unit or name.startswith(f"{unit}.")


def _bytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB" if size >= 2**20 else f"{size / 2**10:,.1f} KiB"
