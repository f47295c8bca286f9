"""Models made on the device `meta`, without memory: filled a unit at a time, with numbers drawn anew or from a file.

    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = run.wrap(model, sharded=True, weights="/opt/ml/input/data/base")

All ranks draw the same numbers, those of the session's seed; from a file each rank reads the unit at hand.
"""

import importlib.util
import operator
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainbox.errors import DataError, HyperparameterError

#: Tensors by name, a safetensors file or a directory of such, or what draws the parameters of one module anew.
Weights = Mapping[str, torch.Tensor] | str | Path | Callable[[nn.Module], object]
#: What PEFT puts around the names of a model, and into them.
_PEFT_PREFIX, _PEFT_INFIX = "base_model.model.", ".base_layer."
_SHOWN = 3
#: What a tensor has before it is filled, so that one that nothing fills is noticed.
_UNFILLED: dict[torch.dtype, float] = {
    **dict.fromkeys((torch.float64, torch.float32, torch.float16, torch.bfloat16), torch.nan),
    **{dtype: torch.iinfo(dtype).min for dtype in (torch.int64, torch.int32, torch.int16)},
}


class Filling:
    """What the tensors on `meta` of a model are filled with.

    Args:
        model: Nothing of it is changed yet.
        weights: None draws the parameters as the model's own modules do it.
        device: Where the tensors go.

    Raises:
        HyperparameterError: Something on `meta` has no source, or nothing is on `meta`.
        DataError: The weights are not those of this model.
    """

    def __init__(self, model: nn.Module, weights: Weights | None, device: torch.device) -> None:
        self._names = _names(model)
        self._device = device
        self._asked = weights if callable(weights) else None
        #: Of Transformers, and of scripts that are written as its models are.
        self._models_own = getattr(model, "_init_weights", None)
        #: How each adapter of PEFT is initialized, by its name.
        self._adapters: Mapping[str, Any] = getattr(model, "peft_config", {})
        self._saved: Mapping[str, Any] = {}
        self._draws = weights is None or callable(weights)
        if isinstance(weights, str | Path):
            self._saved = _SafeTensors(Path(weights))
        elif isinstance(weights, Mapping):
            self._saved = weights
        self._check(model)

    def fill(self, unit: nn.Module) -> None:
        """Give every tensor on `meta` in a module memory and its numbers; others stay as they are."""
        made = _materialize(unit, self._device)
        for module in reversed(list(unit.modules())):  # parts first, as `Module.apply` has it
            own = [tensor for tensor in _own(module).values() if id(tensor) in made]
            if any(self._source(made[id(tensor)]) is None for tensor in own):
                self._initialize(module)
            if any(id(each) in made and self._source(made[id(each)]) is None for each in _adapters(module)):
                self._initialize_adapters(module)
        with torch.no_grad():
            for tensor in _tensors(unit):
                source = self._source(made[id(tensor)]) if id(tensor) in made else None
                if source is not None:
                    tensor.copy_(self._saved[source])
        self._require_filled(unit, made)

    def _require_filled(self, unit: nn.Module, made: Mapping[int, int]) -> None:
        for tensor in _tensors(unit):
            if id(tensor) in made and _is_unfilled(tensor.detach()):
                raise HyperparameterError(
                    f"wrap: {self._names[made[id(tensor)]][0]}, made on the device meta, is not filled, or with NaN",
                    hint="pass weights= that have it, or make its module outside of torch.device('meta')",
                )

    def _initialize(self, module: nn.Module) -> None:
        with torch.no_grad(), self._device:
            for draw in [self._asked] if self._asked else [_reset(module), self._models_own]:
                if draw is not None:
                    draw(module)

    def _initialize_adapters(self, layer: Any) -> None:  # noqa: ANN401 - PEFT is not imported here
        with torch.no_grad(), self._device:
            for name in {*layer.lora_A, *layer.lora_embedding_A}:
                layer.reset_lora_parameters(name, self._adapters[name].init_lora_weights)

    def _source(self, meta: int) -> str | None:
        """Under which name the weights have a tensor, by the identity of what it was on `meta`."""
        candidates = (one for name in self._names[meta] for one in (name, _without_peft(name)))
        return next((one for one in candidates if one in self._saved), None)

    def _check(self, model: nn.Module) -> None:
        on_meta = {id(tensor): tensor for tensor in _tensors(model) if tensor.is_meta}
        if not on_meta:
            raise HyperparameterError(
                "wrap: weights= fills a model that was made on the device meta, and this one was not",
                hint="make it below `with torch.device('meta'):`, or load the weights into it before wrap()",
            )
        parameters = {id(parameter) for parameter in model.parameters()}
        parameters -= {id(parameter) for module in model.modules() for parameter in _adapters(module)}
        lacking = [self._names[one][0] for one in on_meta if one in parameters and self._source(one) is None]
        if lacking and not self._draws:
            raise DataError(
                f"wrap: the weights lack {len(lacking)} parameters of the model: {_listed(lacking)}",
                hint="give them all, or make what the weights do not have outside of torch.device('meta')",
            )
        differing = [self._difference(one, tensor) for one, tensor in on_meta.items() if self._differs(one, tensor)]
        if differing:
            raise DataError(f"wrap: the weights are those of another model: {_listed(differing)}")
        self._check_initializers(model)

    def _differs(self, meta: int, tensor: torch.Tensor) -> bool:
        source = self._source(meta)
        return source is not None and tuple(_shape(self._saved, source)) != tuple(tensor.shape)

    def _difference(self, meta: int, tensor: torch.Tensor) -> str:
        saved = list(_shape(self._saved, str(self._source(meta))))
        return f"{self._names[meta][0]}: {saved} in the weights, {list(tensor.shape)} in the model"

    def _check_initializers(self, model: nn.Module) -> None:
        for name, module in model.named_modules():
            own = {key: tensor for key, tensor in _own(module).items() if tensor.is_meta}
            without = [key for key, tensor in own.items() if self._source(id(tensor)) is None]
            if without and not (self._asked or self._models_own or _reset(module)):
                raise HyperparameterError(
                    f"wrap: nothing fills {'.'.join(filter(None, [name, without[0]]))}, which is on the device meta: "
                    f"{type(module).__name__} has no reset_parameters()",
                    hint="give the class one, or pass weights=: tensors by name, a safetensors file, or a function "
                    "that is called with each module",
                )


class _SafeTensors(Mapping[str, Any]):
    """The tensors of a safetensors file, or of all in a directory; each is read when it is asked for."""

    def __init__(self, path: Path) -> None:
        if importlib.util.find_spec("safetensors") is None:
            raise HyperparameterError("wrap: weights from a file need the package safetensors, which is not installed")
        from safetensors import SafetensorError, safe_open  # noqa: PLC0415 - not a requirement of trainbox

        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if not files:
            raise DataError(f"wrap: there is no .safetensors file in {path}")
        self._files: dict[str, Any] = {}
        for file in files:
            try:
                opened = safe_open(file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise DataError(f"wrap: the weights {file} cannot be read: {error}") from error
            names: list[str] = opened.keys()  # type: ignore[no-untyped-call]
            self._files |= dict.fromkeys(names, opened)

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def shape(self, name: str) -> list[int]:
        shape: list[int] = self._files[name].get_slice(name).get_shape()
        return shape

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def is_needed(model: nn.Module) -> bool:
    """Whether a model has tensors on the device `meta`."""
    return any(tensor.is_meta for tensor in _tensors(model))


def _materialize(unit: nn.Module, device: torch.device) -> dict[int, int]:
    """Replace the tensors on `meta`, one that is tied by one; gives what each was, by the identities of both.

    Not `Module.to_empty`, which gives tied parameters memory each.
    """
    made: dict[int, torch.Tensor] = {}

    def replace(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            empty = torch.empty_like(tensor, device=device)
            if tensor.dtype in _UNFILLED:
                empty.fill_(_UNFILLED[tensor.dtype])
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
        return made[id(tensor)]

    for module in unit.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)  # noqa: SLF001 - as `_apply` does it
        for own in tables:
            own.update({key: replace(value) for key, value in own.items() if value is not None and value.is_meta})
    return {id(tensor): meta for meta, tensor in made.items()}


def _adapters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that a LoRA layer of PEFT puts beside those of its base; none of any other module."""
    if not callable(getattr(module, "reset_lora_parameters", None)):
        return []
    return [parameter for name, parameter in module.named_parameters() if not name.startswith("base_layer.")]


def _is_unfilled(tensor: torch.Tensor) -> bool:
    unfilled = _UNFILLED.get(tensor.dtype)
    if unfilled is None:
        return False
    return bool((torch.isnan(tensor) if tensor.is_floating_point() else tensor == unfilled).any())


def _own(module: nn.Module) -> dict[str, torch.Tensor]:
    return dict([*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)])


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _names(model: nn.Module) -> dict[int, list[str]]:
    names: dict[int, list[str]] = {}
    parameters, buffers = model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    for name, tensor in [*parameters, *buffers]:
        names.setdefault(id(tensor), []).append(name)
    return names


def _reset(module: nn.Module) -> Callable[[nn.Module], object] | None:
    """What torch's own modules initialize themselves with."""
    for name in ("reset_parameters", "_reset_parameters"):
        if callable(getattr(module, name, None)):
            return operator.methodcaller(name)
    return None


def _without_peft(name: str) -> str:
    return name.removeprefix(_PEFT_PREFIX).replace(_PEFT_INFIX, ".")


def _shape(saved: Mapping[str, Any], name: str) -> tuple[int, ...]:
    return tuple(saved.shape(name) if isinstance(saved, _SafeTensors) else saved[name].shape)


def _listed(items: list[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
