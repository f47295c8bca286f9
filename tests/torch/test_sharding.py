"""A model spread over two ranks: how much is gathered at once, whose gradients, and its resume after a kill."""

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.checkpoint.filesystem import FileSystemReader

from tests.support.worlds import Ranks, finish

pytestmark = [pytest.mark.process, pytest.mark.long]

MODEL = """
import hashlib, json, os, time
import torch
from torch import nn
from torch.nn import functional
from trainbox.torch import session

class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, values): return values + self.down(functional.relu(self.up(self.norm(values))))

class Llama(nn.Module):
    def __init__(self, tied):
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(50, 32)
        self.model.layers = nn.ModuleList([Layer() for _ in range(4)])
        self.lm_head = nn.Linear(32, 50, bias=False)
        if tied: self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, tokens):
        values = self.model.embed_tokens(tokens)
        for layer in self.model.layers: values = layer(values)
        return self.lm_head(values)

def report(**values): print("REPORT", json.dumps(values), flush=True)
"""

#: Watches FSDP2 itself: whenever a unit is gathered or given up, the bytes of all that is there or on its way.
GATHERED = """
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from trainbox.torch.parallel.sharding import peak, plan_units

groups, seen = [], []

def size(group): return sum(each._orig_size.numel() * 4 for each in group.fsdp_params)

def watched(method):
    def call(group, *arguments, **named):
        done = method(group, *arguments, **named)
        there = sum(size(each) for each in groups if each.is_unsharded)
        coming = sum(size(each) for each in groups if not each.is_unsharded and each._all_gather_result is not None)
        seen.append(there + coming)
        return done
    return call

for name in ("unshard", "wait_for_unshard", "reshard"):
    setattr(FSDPParamGroup, name, watched(getattr(FSDPParamGroup, name)))

def most(tied):
    with torch.device("meta"): model = Llama(tied)
    units = plan_units(model, ())
    model = run.wrap(model, sharded=True)
    groups[:] = [
        group for module in model.modules() if isinstance(module, FSDPModule)
        for group in module._get_fsdp_state()._fsdp_param_groups
    ]
    seen.clear()
    loss = model(torch.arange(10).reshape(2, 5)).square().mean()
    forward = max(seen)
    seen.clear()
    loss.backward()
    *inner, root = units
    return {
        "forward": forward, "backward": max(seen), "peak": peak(units), "all": sum(unit.size for unit in units),
        "unit and root": root.size + max(unit.size for unit in inner),
        "tied": model.lm_head.weight is model.model.embed_tokens.weight,
    }
"""

#: The gradients of one step in several ways, and those of the mean over all tokens at once.
WEIGHED = """
TOKENS = torch.arange(60).reshape(6, 10) % 50
TARGETS = TOKENS.roll(1, 1).clone()
TARGETS[0, 1:], TARGETS[3, 4:], TARGETS[5] = -100, -100, -100  # masked: no row has as many tokens as the next

def mean(model, rows):
    return functional.cross_entropy(model(TOKENS[rows]).flatten(0, 1), TARGETS[rows].flatten())

def made(): torch.manual_seed(5); return Llama(True)

def gradients(sharded, accumulate):
    model = run.wrap(made(), sharded=sharded)
    kept = {}
    class Keeps(torch.optim.SGD):
        def step(self, closure=None):
            for parameter in self.param_groups[0]["params"]:
                gradient = parameter.grad
                kept[len(kept)] = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient.clone()
    # Rank 0 has four rows, in pieces; rank 1 two, of which the last has no token that counts.
    pieces = [slice(0, 1), slice(1, 4)] if run.rank == 0 else [slice(4, 5), slice(5, 6)]
    optimizer = Keeps(model.parameters(), lr=0.0)
    batches = [[rows] for rows in pieces] if accumulate else [pieces]
    for several in run.steps(batches, accumulate=len(batches)):
        for rows in several:
            run.backward(mean(model, rows), weight=(TARGETS[rows] != -100).sum())
        run.update(optimizer)
    return list(kept.values())

def whole():
    model = made()
    mean(model, slice(0, 6)).backward()
    return [parameter.grad for parameter in model.parameters()]

def farthest(sharded, accumulate=False):
    made = zip(gradients(sharded, accumulate), whole(), strict=True)
    return max(float((one - other).abs().max()) for one, other in made)
"""


def reported(log: str) -> Any:
    (found,) = re.findall(r"^REPORT (.*)$", log, re.MULTILINE)
    return json.loads(found)


def test_no_more_than_the_units_that_are_said_is_gathered_and_weighed_losses_give_exact_gradients(
    tmp_path: Path,
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        MODEL
        + GATHERED
        + WEIGHED
        + """
with session() as run:
    made = {"copies": farthest(False), "sharded": farthest(True), "gathered": farthest(True, True)}
    report(loose=most(False), tied=most(True), **made)
"""
    )
    logs = finish([script], root=tmp_path)
    found = reported(logs[0])
    for kind in ("loose", "tied"):
        gathered = found[kind]
        assert 0 < gathered["forward"] <= gathered["unit and root"] < gathered["all"] / 2
        assert gathered["backward"] <= gathered["peak"] < gathered["all"]
    assert found["tied"]["tied"]
    assert "the largest unit, model.layers.0, has 16.6 KiB; gathered at once at most" in logs[0]
    for rank in (0, 1):
        for way in ("copies", "sharded", "gathered"):
            assert reported(logs[rank])[way] < 1e-6


#: LoRA on a frozen base, whose adapters have dropout: with PEFT and Transformers, or by hand.
LORA = """
class Adapted(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a, self.b = nn.Linear(base.in_features, 4, bias=False), nn.Linear(4, base.out_features, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, values): return self.base(values) + self.b(self.a(functional.dropout(values, 0.1)))

def by_hand():
    model = Llama(True)
    for layer in model.requires_grad_(False).model.layers: layer.up = Adapted(layer.up)
    return model, lambda tokens: functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()), None

def with_peft():
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM
    sizes = dict(hidden_size=32, intermediate_size=64, num_attention_heads=2, num_key_value_heads=1)
    config = LlamaConfig(vocab_size=50, num_hidden_layers=3, tie_word_embeddings=True, **sizes)
    state = LlamaForCausalLM(config).state_dict()  # what a file of the base model would have
    with torch.device("meta"): model = LlamaForCausalLM(config)
    model = get_peft_model(model, LoraConfig(r=4, lora_dropout=0.1, target_modules=["q_proj", "v_proj"]))
    return model, lambda tokens: model(input_ids=tokens, labels=tokens).loss, state

class Rows(torch.utils.data.Dataset):
    def __len__(self): return 48
    def __getitems__(self, indices): return torch.stack([torch.arange(8) * (index + 1) % 50 for index in indices])

with session(seed=3) as run:
    model, loss, weights = {"hand": by_hand, "peft": with_peft}[os.environ["LORA"]]()
    model = run.wrap(model, sharded=True, weights=weights)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    batches = run.batches(48, batch_size=8)
    parts = dict(model=model, optimizer=optimizer, batches=batches)
    first = run.resume(every_seconds=0.0, trainable_only="WHOLE" not in os.environ, **parts)
    while batches.epoch < 2:
        for tokens in run.steps(batches.loader(Rows(), collate=lambda rows: rows)):
            run.backward(loss(tokens), weight=tokens.numel())
            run.update(optimizer, clip=1.0)
            print("STEP", run.step + 1, flush=True)
            if run.step + 1 == 6 and "KILL" in os.environ: time.sleep(1000)
        batches.next_epoch()
    values = {name: value.full_tensor() for name, value in model.named_parameters()}
    digest = hashlib.sha256(b"".join(value.detach().numpy().tobytes() for value in values.values())).hexdigest()
trained = [name for name, value in model.named_parameters() if value.requires_grad]
report(first=first, digest=digest, trained=trained)
"""


@pytest.mark.parametrize("kind", ["hand", "peft"])
def test_adapters_on_a_frozen_base_come_to_the_same_bits_after_a_kill_without_the_base_in_checkpoints(
    kind: str, tmp_path: Path
) -> None:
    if kind == "peft":
        pytest.importorskip("peft")
    script = tmp_path / "script.py"
    script.write_text(MODEL + LORA)
    straight = reported(finish([script], root=tmp_path / "straight", LORA=kind)[0])
    root = tmp_path / "killed"
    with Ranks([script], root=root, environment={"LORA": kind, "KILL": "1"}) as ranks:
        ranks.until(lambda: all("STEP 6\n" in ranks.log(rank) for rank in (0, 1)))
        ranks.signal(signal.SIGKILL, 0, 1)
        assert ranks.wait() == [-signal.SIGKILL, -signal.SIGKILL]
    (kept,) = (root / "checkpoints").glob("step-*")
    held = FileSystemReader(kept).read_metadata().state_dict_metadata
    models = [name for name in held if name.startswith("model.")]
    assert sorted(models) == sorted(f"model.{name}" for name in straight["trained"])
    with Ranks([script], root=root, environment={"LORA": kind, "WHOLE": "1"}) as ranks:
        assert ranks.wait() == [8, 8]
        assert "holds only the trainable parameters, and this training resumes all of them" in ranks.log(0)
        assert "hint: resume(…, trainable_only=True)" in ranks.log(0)
    resumed = [reported(log) for log in finish([script], root=root, LORA=kind)]
    assert all(0 < each["first"] < 6 for each in resumed)
    assert {each["digest"] for each in resumed} == {straight["digest"]}
