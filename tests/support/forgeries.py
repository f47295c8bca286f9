"""Models of which one thing was changed: each is refused, or XGBoost loads it, predicts and trains on without a crash.

A program of its own, so that it runs on any Python that has XGBoost: `python forgeries.py SEED COUNT [KIND …]`. What
the check lets pass is loaded in a fork, with limits for memory and processor; one that a signal ends is a finding.
"""

import contextlib
import copy
import itertools
import json
import os
import resource
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import xgboost as xgb

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.boosters import KINDS, train
from tests.support.ubjson import encode
from trainbox.errors import DataError
from trainbox.xgboost.model_check import check_model
from trainbox.xgboost.model_check.ubjson import decode

_MEMORY_BYTES = 2 * 1024**3
_CPU_SECONDS = 30
_NUMBERS = (-(2**31), -1000, -2, -1, 0, 1, 2, 3, 5, 7, 100, 2**16, 2**24, 2**31 - 2, 2**31 - 1)
_WORDS = (
    "",
    "x",
    "nan",
    "inf",
    "[]",
    "[1E0,2E0]",
    "gbtree",
    "gblinear",
    "dart",
    "multi:softprob",
    "survival:cox",
    "\0",
)
_FAILED = 70


def forge(document: Any, random: Random) -> tuple[Any, str]:
    """A copy of a decoded model with one thing changed, and what it was."""
    forged = copy.deepcopy(document)
    groups: dict[tuple[str, ...], list[tuple[Any, Any, str]]] = {}
    _walk(forged, (), "", groups)
    holder, key, shown = random.choice(groups[random.choice(sorted(groups))])
    value = holder[key]
    if isinstance(value, np.ndarray):
        holder[key] = _change_array(value, random)
    elif random.random() < 0.1:
        holder[key] = random.choice([None, True, {}, [], "", 0, 1.5, -1, np.zeros(2, np.int32)])
    elif isinstance(holder, dict) and random.random() < 0.05:
        del holder[key]
        return forged, f"{shown} is gone"
    else:
        holder[key] = _change(value, random)
    return forged, f"{shown}: {str(value)[:60]} -> {str(holder[key])[:60]}"


def shorten(document: Any) -> Iterator[tuple[Any, str]]:
    """Copies that lack one member each, of every name; of trees the second one."""
    groups: dict[tuple[str, ...], list[tuple[Any, Any, str]]] = {}
    _walk(document, (), "", groups)
    for places in groups.values():
        holder, key, shown = places[len(places) > 1]
        if isinstance(holder, dict):
            value = holder.pop(key)
            yield copy.deepcopy(document), f"{shown} is gone"
            holder[key] = value


def _walk(value: Any, names: tuple[str, ...], shown: str, groups: dict[tuple[str, ...], list[Any]]) -> None:
    """All places, those of the same name together, however many trees there are."""
    if isinstance(value, dict):
        inside: Any = value.items()
    elif isinstance(value, list):
        inside = enumerate(value)
        names = (*names, "[]")
    else:
        return
    for key, member in inside:
        path = (*names, key) if isinstance(value, dict) else names
        where = f"{shown}/{key}"
        groups.setdefault(path, []).append((value, key, where))
        _walk(member, path, where, groups)


def _change(value: Any, random: Random) -> Any:  # noqa: PLR0911 - one for each type
    match value:
        case bool():
            return not value
        case int():
            return random.choice([*_NUMBERS, value + 1, value - 1])
        case float():
            return random.choice([float("nan"), float("inf"), -value, 1e38, 0.0])
        case str() if value.isdecimal():
            return str(random.choice([*_NUMBERS, int(value) + 1, int(value) - 1]))
        case str():
            return random.choice([*_WORDS, value[: len(value) // 2], value + "0"])
        case list():
            return random.choice([value[:-1], value[1:], value * 2, value[::-1], []])
    return random.choice([1, "x", {}, []])


def _change_array(array: np.ndarray[Any, Any], random: Random) -> Any:
    changed: np.ndarray[Any, Any] = np.array(array)
    if len(array) and random.random() < 0.8:
        at = random.randrange(len(array))
        if array.dtype.kind == "f":
            changed[at] = random.choice([np.nan, np.inf, -np.inf, 1e38, 0])
        else:
            limits = np.iinfo(array.dtype)
            wanted = random.choice([*_NUMBERS, int(array[at]) + 1, int(array[at]) - 1, len(array), len(array) - 1, at])
            changed[at] = min(max(wanted, limits.min), limits.max)
        return changed
    cuts: list[Any] = [array[:-1], np.tile(array, 2), array[:0], array[::-1], array.astype(">f4"), array.tolist()]
    return random.choice(cuts)


def exercise(content: bytes, matrix: xgb.DMatrix) -> None:
    """Do with a model all that one does: an error of XGBoost or of Python is as good as success."""
    try:
        booster = xgb.Booster({"nthread": 1, "verbosity": 0}, model_file=bytearray(content))
    except (xgb.core.XGBoostError, ValueError):
        return
    leaves = {"process_type": "update", "updater": "refresh"}
    steps: list[Callable[[], object]] = [
        lambda: booster.predict(matrix, validate_features=False),
        lambda: booster.predict(matrix, pred_leaf=True, validate_features=False),
        lambda: booster.predict(matrix, pred_contribs=True, validate_features=False),
        lambda: booster.predict(matrix, pred_contribs=True, approx_contribs=True, validate_features=False),
        lambda: booster.predict(matrix, pred_interactions=True, validate_features=False),
        lambda: booster.inplace_predict(np.zeros((70, matrix.num_col()), np.float32), validate_features=False),
        lambda: booster.get_dump(with_stats=True),
        lambda: booster.get_score(importance_type="gain"),
        lambda: booster[0:1].predict(matrix, validate_features=False),
        lambda: booster.save_raw("ubj"),
        lambda: booster.save_raw("json"),
        lambda: xgb.train({"nthread": 1, "verbosity": 0, **leaves}, matrix, 1, xgb_model=booster.copy()),
        lambda: booster.update(matrix, booster.num_boosted_rounds()),
        lambda: booster.predict(matrix, validate_features=False),
    ]
    for step in steps:
        with contextlib.suppress(Exception):  # of any kind: it must only not crash
            step()


def survives(content: bytes, matrix: xgb.DMatrix) -> str:
    """How a process ended that has exercised a model; empty where it was well."""
    pid = os.fork()
    if not pid:
        try:
            in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (in_use + _MEMORY_BYTES,) * 2)
            resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            exercise(content, matrix)
            os._exit(0)
        finally:
            os._exit(_FAILED)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return "" if code == 0 else f"ended with {code}"


def main(seed: int, count: int, kinds: Sequence[str]) -> dict[str, Any]:
    """Forge models, kind after kind, and say what became of them."""
    refused, taken, found = 0, 0, []
    for kind in kinds:
        booster, matrix = train(kind)
        document = decode(bytes(booster.save_raw("ubj")))
        drawn = (forge(document, Random(f"{seed} {kind} {number}")) for number in range(count))
        for forged, how in itertools.chain(shorten(document), drawn):
            content = encode(forged)
            try:
                check_model(content, source="the model")
            except DataError:
                refused += 1
                continue
            taken += 1
            if ended := survives(content, matrix):
                found.append(f"{kind}: {how}: {ended}")
    return {"xgboost": xgb.__version__, "refused": refused, "taken": taken, "found": found}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] or list(KINDS))))
