"""What of a model is gathered together, what fills one made on `meta`, and losses by their weights: without ranks."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from trainbox.errors import CheckpointError, DataError, HyperparameterError, TrainingError
from trainbox.torch.checkpoints.parts import FROZEN, Trainable, check_frozen, digest_frozen
from trainbox.torch.parallel.filling import Filling, is_needed
from trainbox.torch.parallel.sharding import Asked, check_units, describe, peak, place, plan_units
from trainbox.torch.steps.weighing import LossWeights

CPU = torch.device("cpu")


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))


class Decoder(nn.Module):
    def __init__(self, width: int, vocabulary: int, layers: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList([Layer(width) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)


class Llama(nn.Module):
    """Laid out as LlamaForCausalLM: all but the head is in one child."""

    def __init__(self, *, tied: bool, width: int = 8, vocabulary: int = 10, layers: int = 3) -> None:
        super().__init__()
        self.model = Decoder(width, vocabulary, layers)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.lm_head.weight = self.model.embed_tokens.weight


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make()


def names(model: nn.Module, *asked: Asked) -> list[str]:
    return [unit.name for unit in plan_units(model, asked)]


LAYERS = ["model.layers.0", "model.layers.1", "model.layers.2"]
LAYER_BYTES = 4 * (2 * 8 + 8 * 16 + 16 + 16 * 8 + 8)


def test_each_layer_is_a_unit_and_so_are_the_modules_outside_of_the_layers() -> None:
    model = Llama(tied=False)
    assert names(model) == [*LAYERS, "model.embed_tokens", "model.norm", "lm_head", ""]
    sizes = {unit.name: unit.size for unit in plan_units(model, ())}
    assert sizes["model.layers.0"] == LAYER_BYTES
    assert sizes["lm_head"] == sizes["model.embed_tokens"] == 4 * 8 * 10
    assert sizes[""] == 0
    assert sum(sizes.values()) == 4 * sum(parameter.numel() for parameter in model.parameters())


def test_tied_embeddings_are_left_to_the_root_and_counted_once() -> None:
    units = plan_units(Llama(tied=True), ())
    assert [unit.name for unit in units] == [*LAYERS, "model.norm", ""]
    assert units[-1].size == 4 * 8 * 10


def test_a_layer_that_shares_a_parameter_is_divided_and_the_rest_of_it_stays_a_unit() -> None:
    model = Llama(tied=False)
    model.model.layers[1].norm.weight = model.model.layers[0].norm.weight  # type: ignore[union-attr]
    assert {"model.layers.0.mlp.0", "model.layers.1.mlp.2", "model.layers.2"} < set(names(model))
    assert not {"model.layers.0", "model.layers.1", "model.layers.0.norm"} & set(names(model))


def test_experts_of_a_layer_which_ranks_may_call_differently_are_no_units() -> None:
    layer = Layer(4)
    layer.experts = nn.ModuleList([Layer(4) for _ in range(3)])
    model = nn.Sequential(nn.Linear(4, 4), nn.ModuleList([layer, Layer(4)]))
    assert names(model) == ["1.0", "1.1", "0", ""]


def test_units_are_named_by_patterns_or_classes_and_inner_ones_come_first() -> None:
    model = Llama(tied=True)
    assert names(model, "model.layers.*") == [*LAYERS, ""]
    assert names(model, Layer) == [*LAYERS, ""]
    assert names(model, "model.layers.2", "model.layers.2.mlp.*") == [
        "model.layers.2.mlp.0",
        "model.layers.2.mlp.2",
        "model.layers.2",
        "",
    ]
    inner = {unit.name: unit.size for unit in plan_units(model, ("model.layers.2", "model.layers.2.mlp.*"))}
    assert inner["model.layers.2"] == 4 * 2 * 8  # its norm alone


class Layers(nn.Module):
    pass


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("model.layer.*", "no module of the model is named 'model.layer.*' - did you mean 'model.layers.*'?"),
        (Layers, "no module of the model is a Layers - did you mean 'Layer'?"),
        ("model.layers", "'model.layers' is a ModuleList, which is never called itself\n  hint: .*'model.layers.*'"),
        ("lm_head", "'lm_head' shares a parameter with a module outside of it (model.embed_tokens.weight)"),
    ],
    ids=str,
)
def test_what_cannot_be_a_unit_is_refused_with_what_was_meant(asked: Asked, message: str) -> None:
    with pytest.raises(HyperparameterError) as refused:
        plan_units(Llama(tied=True), (asked,))
    for part in message.split("\n  hint: .*"):
        assert part in str(refused.value)


def test_units_without_sharding_are_refused() -> None:
    with pytest.raises(HyperparameterError, match="units= are those of a sharded model"):
        check_units(("model.layers.*",), sharded=False)


def test_one_line_says_how_much_is_gathered_at_once() -> None:
    units = plan_units(Llama(tied=True, width=512, vocabulary=1024), (), torch.bfloat16)
    assert peak(units) == 2 * 512 * 1024 + 2 * units[0].size
    assert describe(units) == (
        "in 4 units and a root of 1.0 MiB; the largest unit, model.layers.0, has 2.0 MiB; gathered at once at most "
        "5.0 MiB, the next unit included"
    )
    assert "gathered whole; units=… can name its layers" in describe(plan_units(nn.Linear(2, 2), ()))


# ---- models made on meta -------------------------------------------------------------------------------------------


def test_a_model_on_meta_is_filled_unit_by_unit_with_the_numbers_of_the_seed_and_stays_tied() -> None:
    filled = []
    for _ in range(2):
        model = on_meta(lambda: Llama(tied=True))
        torch.manual_seed(7)
        filled.append(place(model, plan_units(model, ()), CPU, None, None, ranks=1))
    one, other = (model.state_dict() for model in filled)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not is_needed(filled[0])
    assert filled[0].lm_head.weight is filled[0].model.embed_tokens.weight  # type: ignore[union-attr]
    assert all(parameter.isfinite().all() for parameter in filled[0].parameters())
    assert torch.equal(filled[0].model.norm.weight, torch.ones(8))  # type: ignore[union-attr, arg-type]


def test_only_one_unit_is_made_whole_at_a_time() -> None:
    model = on_meta(lambda: Llama(tied=False))
    filling = Filling(model, None, CPU)
    for unit in plan_units(model, ()):
        others = {name for name, parameter in model.named_parameters() if parameter.is_meta}
        filling.fill(model.get_submodule(unit.name))
        now = {name for name, parameter in model.named_parameters() if parameter.is_meta}
        assert all(name.startswith(unit.name) for name in others - now)
    assert not is_needed(model)


def write_safetensors(state: Mapping[str, torch.Tensor], directory: Path) -> Path:
    save = pytest.importorskip("safetensors.torch").save_file
    directory.mkdir()
    items = list(state.items())
    save(dict(items[:4]), directory / "model-00001-of-00002.safetensors")
    save(dict(items[4:]), directory / "model-00002-of-00002.safetensors")
    return directory


@pytest.mark.parametrize("form", ["mapping", "safetensors", "peft"])
def test_a_model_on_meta_is_filled_from_tensors_by_name(form: str, tmp_path: Path) -> None:
    state = {name: value for name, value in Llama(tied=True).state_dict().items() if name != "lm_head.weight"}
    weights: Any = write_safetensors(state, tmp_path / "base") if form == "safetensors" else state
    model = on_meta(lambda: Llama(tied=True))
    if form == "peft":
        outer, outer.base_model = nn.Module(), nn.Module()
        outer.base_model.model = model
        model = outer
    filled = place(model, plan_units(model, ()), CPU, weights, None, ranks=1)
    found = {name.removeprefix("base_model.model."): value for name, value in filled.state_dict().items()}
    assert all(torch.equal(found[name], value) for name, value in state.items())
    assert torch.equal(found["lm_head.weight"], state["model.embed_tokens.weight"])


class Scaled(nn.Sequential):
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.weight, 3.0)


def test_what_a_model_initializes_itself_comes_over_what_its_modules_do() -> None:
    model = on_meta(lambda: Scaled(nn.Linear(2, 2), nn.LayerNorm(2)))
    place(model, plan_units(model, ()), CPU, None, None, ranks=1)
    assert torch.equal(model.get_parameter("0.weight"), torch.full((2, 2), 3.0))
    assert torch.equal(model.get_parameter("1.weight"), torch.ones(2))


class Adapted(nn.Module):
    """As the LoRA layers of PEFT, which binds a socket when it is imported; `test_sharding` has the real ones."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(8, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 16, bias=False)})
        self.lora_embedding_A = nn.ParameterDict()

    def reset_lora_parameters(self, name: str, how: object) -> None:
        assert how == "gaussian"
        nn.init.normal_(self.lora_A.get_parameter(f"{name}.weight"))
        nn.init.zeros_(self.lora_B.get_parameter(f"{name}.weight"))


def test_adapters_on_meta_are_initialized_as_peft_does_it_while_their_base_is_read() -> None:
    state = Llama(tied=True).state_dict()

    def adapted() -> nn.Module:
        model = Llama(tied=True)
        for layer in model.model.layers:
            layer.mlp[0] = Adapted(layer.mlp[0])  # type: ignore[assignment, index, operator, arg-type]
        vars(model)["peft_config"] = {"default": SimpleNamespace(init_lora_weights="gaussian")}
        return model

    model = on_meta(adapted)
    found = dict(place(model, plan_units(model, ()), CPU, state, None, ranks=1).named_parameters())
    assert torch.equal(found["model.layers.1.mlp.0.base_layer.weight"], state["model.layers.1.mlp.0.weight"])
    assert all(value.any() for name, value in found.items() if ".lora_A." in name)
    assert not any(value.any() for name, value in found.items() if ".lora_B." in name)


class Rope(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("angles", torch.arange(4.0), persistent=False)


def test_what_nothing_can_fill_is_named_before_anything_is_made() -> None:
    model = on_meta(lambda: nn.Sequential(nn.Linear(2, 2), Rope()))
    with pytest.raises(HyperparameterError, match=r"nothing fills 1\.angles.*Rope has no reset_parameters"):
        Filling(model, None, CPU)
    with pytest.raises(HyperparameterError, match=r"nothing fills 1\.angles"):
        Filling(model, {"0.weight": torch.ones(2, 2), "0.bias": torch.ones(2)}, CPU)


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("positions", torch.arange(4))


def test_a_function_fills_each_module_and_what_it_leaves_out_is_noticed() -> None:
    def ones(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)

    model = on_meta(lambda: nn.Sequential(nn.Linear(2, 2)))
    place(model, plan_units(model, ()), CPU, ones, None, ranks=1)
    assert torch.equal(model.get_parameter("0.weight"), torch.ones(2, 2))
    for make, what in ((lambda: nn.LayerNorm(2), "weight"), (Positions, "positions")):
        lacking = on_meta(make)
        with pytest.raises(HyperparameterError, match=f"{what}, made on the device meta, is not filled"):
            place(lacking, plan_units(lacking, ()), CPU, ones, None, ranks=1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict.fromkeys(Llama(tied=False).state_dict()), "the weights lack 2[0-9] parameters of the model: model.embed"),
        ({"lm_head.weight": None}, "the weights lack 1 parameters of the model: lm_head.weight"),
        ({"lm_head.weight": torch.ones(3, 3)}, r"lm_head.weight: \[3, 3\] in the weights, \[10, 8\] in the model"),
    ],
    ids=["all", "lacking", "shape"],
)
def test_weights_of_another_model_are_refused(changed: Mapping[str, torch.Tensor | None], message: str) -> None:
    given = {**Llama(tied=False).state_dict(), **changed}
    state = {name: value for name, value in given.items() if value is not None}
    with pytest.raises(DataError, match=message):
        Filling(on_meta(lambda: Llama(tied=False)), state, CPU)


def test_weights_that_are_no_safetensors_and_weights_of_a_model_with_memory_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"none")
    with pytest.raises(DataError, match=r"bad\.safetensors cannot be read"):
        Filling(on_meta(lambda: Llama(tied=True)), tmp_path, CPU)
    (tmp_path / "bad.safetensors").unlink()
    with pytest.raises(DataError, match=r"there is no \.safetensors file"):
        Filling(on_meta(lambda: Llama(tied=True)), tmp_path, CPU)
    with pytest.raises(HyperparameterError, match="weights= fills a model that was made on the device meta"):
        Filling(Llama(tied=True), {}, CPU)


# ---- weights of losses ---------------------------------------------------------------------------------------------


def test_weighed_losses_give_the_gradient_of_the_mean_over_all_tokens() -> None:
    inputs, targets = torch.randn(9, 4), torch.arange(9) % 3
    whole, parts = (nn.Parameter(torch.ones(4, 3)) for _ in range(2))
    torch.autograd.backward(functional.cross_entropy(inputs @ whole, targets))
    weights = LossWeights(CPU)
    for piece in (slice(0, 2), slice(2, 9)):
        loss = functional.cross_entropy(inputs[piece] @ parts, targets[piece])
        torch.autograd.backward(weights.weigh(loss, len(targets[piece])))
    weights.apply([parts])
    assert whole.grad is not None
    torch.testing.assert_close(parts.grad, whole.grad)


def test_a_loss_of_no_tokens_counts_nothing() -> None:
    parameter = nn.Parameter(torch.ones(4, 3))
    weights = LossWeights(CPU)
    ignored = torch.full((2,), -100)
    loss = functional.cross_entropy(torch.randn(2, 4) @ parameter, ignored)
    assert loss.isnan()
    torch.autograd.backward(weights.weigh(loss, (ignored != -100).sum()))
    weights.apply([parameter])
    assert torch.equal(parameter.grad, torch.zeros(4, 3))  # type: ignore[arg-type]


def test_losses_with_and_without_a_weight_in_one_step_are_refused_and_the_next_step_is_free() -> None:
    weights, loss = LossWeights(CPU), torch.ones(())
    weights.weigh(loss, None)
    with pytest.raises(TrainingError, match="with and without weight="):
        weights.weigh(loss, 3)
    weights.apply([])
    assert float(weights.weigh(loss, 3)) == 3.0


# ---- checkpoints of what is trained --------------------------------------------------------------------------------


def test_the_state_of_a_partly_frozen_model_is_what_is_trained_and_its_buffers() -> None:
    first, last = nn.Linear(2, 2), nn.Linear(2, 2)
    last.weight = first.weight
    model = nn.Sequential(first.requires_grad_(requires_grad=False), nn.BatchNorm1d(2), last)
    part = Trainable(model)
    state = {name: value.clone() for name, value in part.state_dict().items()}
    assert sorted(state) == [
        *("1.bias", "1.num_batches_tracked", "1.running_mean", "1.running_var", "1.weight", "2.bias"),
    ]
    frozen = first.weight.clone()
    with torch.no_grad():
        last.bias.zero_()
    part.load_state_dict(state)
    assert torch.equal(last.bias, state["2.bias"])
    assert torch.equal(first.weight, frozen)


def test_the_digest_of_frozen_parameters_tells_them_apart() -> None:
    model = Llama(tied=False)
    model.model.requires_grad_(requires_grad=False)
    first = digest_frozen([model], None)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert digest_frozen([model], None) == first
    with torch.no_grad():
        model.model.norm.bias[0] += 1
    assert digest_frozen([model], None) != first


@pytest.mark.parametrize(
    ("then", "now", "message"),
    [
        ({}, {FROZEN: "1"}, "the checkpoint holds all parameters.*hint: resume.* without trainable_only=True"),
        ({FROZEN: "1"}, {}, "holds only the trainable parameters.*hint: resume.*, trainable_only=True"),
        ({FROZEN: "1"}, {FROZEN: "2"}, "the frozen parameters are not those.*hint: load the same base model"),
    ],
    ids=["all", "trainable", "another base"],
)
def test_a_checkpoint_made_one_way_is_not_resumed_the_other(
    then: Mapping[str, str], now: Mapping[str, str], message: str
) -> None:
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        check_frozen(then, now)
    check_frozen(then, then)
