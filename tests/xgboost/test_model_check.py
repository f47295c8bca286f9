"""What XGBoost has written is a model; what would make it crash is refused with the tree, the node and the number."""

import contextlib
import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import xgboost as xgb
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import boosters, forgeries
from tests.support.ubjson import encode
from trainbox.errors import DataError
from trainbox.xgboost.model_check import Model, check_model
from trainbox.xgboost.model_check.trees import DEEPEST_TREE
from trainbox.xgboost.model_check.ubjson import decode

ROOT = Path(__file__).parents[2]
#: Python 3.12 with XGBoost 3.4, which writes dart and several targets in another way; `make venv-py312` makes it.
NEWEST = ROOT / ".venv-py312" / "bin" / "python"
#: Of every form that models have; the long test has all kinds.
OF_EACH_FORM = ("softprob", "dart", "linear", "a tree for two targets", "categories", "exact, pruned")
PYTHONS = {"here": Path(sys.executable), "newest": NEWEST}
PYTHONS_OF_XGBOOST = [
    pytest.param(PYTHONS["here"], id="here"),
    pytest.param(PYTHONS["newest"], id="newest", marks=pytest.mark.long),
]


@cache
def model(kind: str) -> bytes:
    """A model as XGBoost writes it."""
    booster, _ = boosters.train(kind)
    return bytes(booster.save_raw("ubj"))


def changed(kind: str, change: Callable[[Any], None]) -> bytes:
    """A model in which something was changed."""
    document = copy.deepcopy(decode(model(kind)))
    change(document)
    return encode(document)


def refusal(content: bytes) -> str:
    with pytest.raises(DataError) as caught:
        check_model(content, source="xgboost-model")
    assert caught.value.hint
    assert caught.value.message.startswith("xgboost-model is not a model of XGBoost: ")
    return caught.value.message.partition("XGBoost: ")[2]


def tree(document: Any, number: int = 1) -> Any:
    return trees(document)["trees"][number]


def trees(document: Any) -> Any:
    booster = document["learner"]["gradient_booster"]
    return booster.get("gbtree", booster)["model"]


def put(name: str, at: int, value: int, number: int = 1) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        array = np.array(tree(document, number)[name])
        array[at] = value
        tree(document, number)[name] = array

    return change


def run(program: Path, python: Path, *arguments: str) -> Any:
    """The answer of a program of `tests.support`, on some Python."""
    if not python.exists():
        pytest.skip("there is no Python 3.12 here: make venv-py312")
    answer = subprocess.run(
        [python, program, *arguments],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'container'}", "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


@pytest.mark.process
@pytest.mark.parametrize("python", PYTHONS_OF_XGBOOST)
def test_every_model_that_xgboost_writes_is_taken(python: Path) -> None:
    said = run(Path(boosters.__file__), python)
    assert {kind: wrong for kind, wrong in said["wrong"].items() if wrong} == {}
    assert said["wrong"].keys() > boosters.KINDS.keys()


@pytest.mark.long
@pytest.mark.process
@pytest.mark.parametrize("python", PYTHONS_OF_XGBOOST)
def test_what_is_taken_though_one_thing_was_changed_does_not_crash_xgboost(python: Path) -> None:
    said = run(Path(forgeries.__file__), python, "1", "12", *OF_EACH_FORM)
    assert said["found"] == []
    assert said["taken"]
    assert said["refused"] > said["taken"]


@pytest.mark.process
@pytest.mark.long
@pytest.mark.parametrize("python", PYTHONS.values(), ids=PYTHONS.keys())
def test_the_same_of_every_kind_and_many_changes(python: Path) -> None:
    assert run(Path(forgeries.__file__), python, "2", "60")["found"] == []


#: The five of the review, each of which ended XGBoost 3.2 and 3.4 with a memory error, and what is said of them.
ATTACKS = {
    "child": (put("left_children", 0, 10**6), r"tree 1, node 0 of \d+: 1000000 in left_children is out of range .*"),
    "loop": (put("left_children", 1, 0), r"tree 1, node 1 of \d+: 0 in left_children is out of range .*"),
    "feature": (put("split_indices", 0, 10**6), r"tree 1, node 0 of \d+: 1000000 in split_indices is out of range .*"),
    "parent": (put("parents", 2, 10**6), r"tree 1, node 2 of \d+: 1000000 in parents is out of range .*"),
    "class": (
        lambda document: trees(document).update(tree_info=[0, 1, 10**6, *trees(document)["tree_info"][3:]]),
        r"tree 2 is for class or target 1000000 \(tree_info\); there are 3",
    ),
}


@pytest.mark.parametrize(("change", "words"), ATTACKS.values(), ids=ATTACKS.keys())
def test_what_crashed_xgboost_is_refused_by_name(change: Callable[[Any], None], words: str) -> None:
    assert re.fullmatch(words, refusal(changed("softprob", change)))


def _drop(name: str) -> Callable[[Any], None]:
    return lambda document: tree(document).update({name: tree(document)[name][:-1]})


def _learner(name: str, value: str) -> Callable[[Any], None]:
    return lambda document: document["learner"]["learner_model_param"].update({name: value})


def _booster(**values: object) -> Callable[[Any], None]:
    return lambda document: document["learner"]["gradient_booster"].update(values)


def _model(**values: object) -> Callable[[Any], None]:
    return lambda document: trees(document).update(values)


#: Of what kind, what was changed, and what is said of it.
FORGERIES: dict[str, tuple[str, Callable[[Any], None], str]] = {
    "a node less": ("softprob", _drop("left_children"), "nodes, but .* left_children"),
    "a statistic less": ("softprob", _drop("sum_hessian"), "nodes, but .* sum_hessian"),
    "a right child elsewhere": ("softprob", put("right_children", 0, 3), "node 0 of .*: 3 in right_children"),
    "a left child at the very end": (
        "softprob",
        lambda document: put("left_children", 0, len(tree(document)["parents"]) - 1)(document),
        "node 0 of .* in left_children",
    ),
    "two parents of a child": ("deep", put("parents", 3, 2), "node 3 of .*: 2 in parents"),
    "a root with a parent": ("softprob", put("parents", 0, 1), "node 0 of .*: 1 in parents"),
    "a negative feature": ("softprob", put("split_indices", 0, -1), "node 0 of .*: -1 in split_indices"),
    "a feature of a leaf": ("softprob", put("split_indices", -1, 4), "4 in split_indices"),
    "a tree of more features": (
        "softprob",
        lambda document: tree(document)["tree_param"].update(num_feature="5"),
        "tree 1 is for 5 features, the model for 4",
    ),
    "the number of another tree": ("softprob", lambda document: tree(document).update(id=0), "tree 1 has the id 0"),
    "a deleted node too many": (
        "exact, pruned",
        lambda document: tree(document)["tree_param"].update(num_deleted="99"),
        "deleted nodes, but says num_deleted=99",
    ),
    "no number": ("softprob", _learner("num_feature", "4x"), "num_feature of .* is '4x', expected a number"),
    "classes without trees": ("binary:logistic", _learner("num_class", "1000000"), "round 0 has 1 trees; .*1,000,000"),
    "classes and targets": ("softprob", _learner("num_target", "2"), "3 classes and 2 targets"),
    "a base score that is none": ("binary:logistic", _learner("base_score", "[NaN]"), "base_score is"),
    "an infinite base score": ("binary:logistic", _learner("base_score", "[1e999]"), "not finite"),
    "an unknown booster": ("binary:logistic", _booster(name="gbforest"), "the booster 'gbforest' is not one of"),
    "rounds that go back": ("binary:logistic", _model(iteration_indptr=[0, 3, 2, 4]), "iteration_indptr does not asc"),
    "rounds of more trees": ("binary:logistic", _model(iteration_indptr=[0, 9]), "iteration_indptr does not ascend"),
    "more trees at a time": (
        "softprob",
        lambda document: trees(document)["gbtree_model_param"].update(num_parallel_tree="7"),
        "round 0 has 3 trees; num_parallel_tree=7 and 3 outputs make 21",
    ),
    "no trees": ("binary:logistic", _model(trees=[]), "it has 0 trees, but says num_trees=4"),
    "too few weights": ("linear", _model(weights=np.zeros(3, np.float32)), "3 weights"),
    "too few leaves": ("a tree for two targets", _drop("leaf_weights"), "leaves of 2 values, but .* leaf_weights"),
    "no leaves": ("a tree for two targets", lambda document: tree(document).pop("leaf_weights"), "has no leaf_weights"),
    "no kinds of splits": ("a tree for two targets", lambda document: tree(document).pop("split_type"), "split_type"),
    "leaves elsewhere": ("a tree for two targets", put("right_children", -1, 99), "99 in right_children"),
    "larger leaves": (
        "a tree for two targets",
        lambda document: tree(document)["tree_param"].update(size_leaf_vector="3"),
        "the leaves of tree 1 have 3 values, the model has 2 outputs",
    ),
    "categories elsewhere": ("categories", put("categories_segments", 0, 7), "do not lie one after the other"),
    "no categories": ("categories", put("categories_sizes", 0, 0), "do not lie one after the other"),
    "a negative category": ("categories", put("categories", 0, -1), "splits by a category that is not from 0"),
    "a category beyond all": ("categories", put("categories", 0, 2**30), "splits by a category that is not from 0"),
    "a split of no kind": ("categories", put("split_type", 0, 9), "split_type should have a 0 or a 1"),
    "a categorical split without categories": (
        "binary:logistic", put("split_type", 0, 1), "are not the nodes that split_type marks",
    ),
    "names of other features": (
        "names",
        lambda document: document["learner"].update(feature_names=["a", "b"]),
        "feature_names should have a text for each of 4 features",
    ),
    "a version in words": ("binary:logistic", lambda document: document.update(version=["3", 2, 0]), "its version"),
    "nothing": ("binary:logistic", lambda document: document.clear(), "neither UBJSON nor JSON"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "change", "words"), FORGERIES.values(), ids=FORGERIES.keys())
def test_what_is_no_model_is_refused_in_words(kind: str, change: Callable[[Any], None], words: str) -> None:
    assert re.search(words, refusal(changed(kind, change)))


def test_what_a_model_is_said_to_be() -> None:
    softprob, linear = (check_model(model(kind), source="it") for kind in ("softprob", "linear"))
    assert ".".join(map(str, softprob.version)) == xgb.__version__
    assert softprob == Model("gbtree", "multi:softprob", 4, 3, 12, 4, softprob.version)
    assert linear == Model("gblinear", "reg:squarederror", 4, 1, 0, 4, softprob.version)


def test_a_tree_deeper_than_xgboost_can_follow_is_refused() -> None:
    """A chain: every left child is a leaf, every right child goes on."""

    def change(document: Any, depth: int) -> None:
        nodes = 2 * depth + 1
        inner = np.arange(nodes) % 2 == 0
        inner[-1] = False
        left = np.where(inner, np.arange(nodes) + 1, -1).astype(np.int32)
        parent = np.where(np.arange(nodes) % 2, np.arange(nodes) - 1, np.arange(nodes) - 2).astype(np.int32)
        parent[0] = 2**31 - 1
        floats = np.zeros(nodes, np.float32)
        tree(document).update(
            left_children=left,
            right_children=np.where(inner, left + 1, -1).astype(np.int32),
            parents=parent,
            split_indices=np.zeros(nodes, np.int32),
            default_left=np.zeros(nodes, np.uint8),
            split_type=np.zeros(nodes, np.uint8),
            **dict.fromkeys(("loss_changes", "sum_hessian", "base_weights", "split_conditions"), floats),
        )
        tree(document)["tree_param"]["num_nodes"] = str(nodes)

    check_model(changed("binary:logistic", lambda document: change(document, DEEPEST_TREE - 1)), source="it")
    deeper = changed("binary:logistic", lambda document: change(document, DEEPEST_TREE))
    assert refusal(deeper) == f"tree 1 is deeper than {DEEPEST_TREE:,}, more than XGBoost can follow"


# ---- the bytes ----


def test_every_cut_is_refused() -> None:
    """XGBoost itself reads on behind the end."""
    content = model("binary:logistic")
    for length in (*range(200), *range(200, len(content), 97), len(content) - 1):
        refusal(content[:length])


BYTES = {
    "bytes behind the end": (lambda content: content + b"}", "1 bytes follow the model"),
    "a key twice": (
        lambda content: content[:1] + _member("learner", {}) + content[1:],
        "the key 'learner' occurs twice",
    ),
    "an array that is cut off": (lambda _: b"{" + _member("a", None)[:-1] + b"[#L", "cut off"),
    "a length below 0": (lambda _: b"{" + _member("a", None)[:-1] + b"[$l#" + _count(-1), "a length of -1"),
    "a length beyond the end": (lambda _: b"{" + _member("a", None)[:-1] + b"[$l#" + _count(2**61), "a length of"),
    "an array without a length": (lambda _: b"{" + _member("a", None)[:-1] + b"[i\x01]", "an array without a length"),
    "a high precision number": (lambda _: b"{" + _member("a", None)[:-1] + b"H", "the marker 'H'"),
    "other text": (lambda _: b"hello", "neither UBJSON nor JSON"),
    "no bytes": (lambda _: b"", "neither UBJSON nor JSON"),
    "the binary format of XGBoost 1": (lambda _: b"binf" + bytes(100), "neither UBJSON nor JSON"),
}


def _count(number: int) -> bytes:
    return b"L" + number.to_bytes(8, "big", signed=True)


def _member(name: str, value: object) -> bytes:
    return encode({name: value})[1:-1]


@pytest.mark.parametrize(("change", "words"), BYTES.values(), ids=BYTES.keys())
def test_bytes_that_are_no_ubjson_are_refused(change: Callable[[bytes], bytes], words: str) -> None:
    assert words in refusal(change(model("binary:logistic")))


def test_containers_within_containers_take_no_more_memory_than_the_bytes() -> None:
    nested = b"{" + _member("a", None)[:-1]
    assert "nest deeper" in refusal(nested + (b"[#" + _count(1)) * 100 + b"Z}")
    assert "more arrays and objects than" in refusal(nested + b"[#" + _count(10**5) + b"{}" * 10**5 + b"}")


def test_of_json_a_reader_that_reads_otherwise_than_xgboost_sees_nothing() -> None:
    text = bytes(boosters.train("binary:logistic")[0].save_raw("json"))
    known = check_model(text, source="it")
    assert known == check_model(model("binary:logistic"), source="it")
    assert "occurs twice" in refusal(b'{"learner":{},' + text[1:])
    assert "plain letter" in refusal(text.replace(b'"trees"', b'"\\u0074rees"'))
    assert refusal(text[:-1])
    assert refusal(text + b"{}")
    assert refusal(b'{"a":' + b"[" * 10**5)
    assert refusal(text.decode().encode("utf-16"))
    assert "32 bits" in refusal(re.sub(rb'"parents":\[\d+', b'"parents":[99999999999', text))
    assert "not an array of whole numbers" in refusal(re.sub(rb'"parents":\[\d+', b'"parents":[9e9', text))


@given(kind=st.sampled_from(sorted(boosters.KINDS)), seed=st.integers(0, 2**32))
@settings(max_examples=150)
def test_whatever_was_changed_it_is_a_model_or_refused(kind: str, seed: int) -> None:
    forged, _ = forgeries.forge(decode(model(kind)), Random(seed))
    with contextlib.suppress(DataError):  # anything else fails the test
        check_model(encode(forged), source="it")
