"""Which labels and codes can be learnt from, and the first row that has another one."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainbox.contract.job import Channel
from trainbox.data import Block, ColumnSpec, Sparse, read_blocks, read_table
from trainbox.errors import DataError
from trainbox.tabular.domains import (
    ANYTHING,
    WHOLE,
    Domain,
    check_known,
    classes_below,
    codes_of,
    labels_in,
    spell,
)
from trainbox.tabular.faults import Fault, Scan, find_place, raise_first

NAN = math.nan


def block(labels: Any, features: Any = None) -> Block:
    """Rows 100, 101, … of a file."""
    labels = np.array(labels, np.float32)
    if features is None:
        features = np.zeros((len(labels), 1), np.float32)
    return Block(labels, features, None, None, lambda row: f"train/a.csv:{100 + row}")


@pytest.mark.parametrize(
    ("domain", "inside", "outside"),
    [
        (ANYTHING, [-1e30, 0, 0.5, 1e30], []),
        (WHOLE, [-3, 0, 7], [0.5, -1.25]),
        (Domain("", lowest=0), [0, 0.5, 7], [-0.5, -1e-30]),
        (Domain("", lowest=0, is_open=True), [1e-30, 3], [0, -1]),
        (Domain("", lowest=-1, is_open=True), [-0.999, 0], [-1, -2]),
        (Domain("", lowest=0, highest=1), [0, 0.25, 1], [-0.25, 1.5]),
        (classes_below(3), [0, 1, 2], [3, -1, 0.5, 1e9]),
    ],
)
def test_a_domain_knows_its_labels(domain: Domain, inside: Sequence[float], outside: Sequence[float]) -> None:
    found = domain.outside(np.array([*inside, *outside, NAN], np.float32))
    assert found.tolist() == [False] * len(inside) + [True] * (len(outside) + 1)


def test_the_first_label_outside_is_named_with_row_value_and_who_needs_another() -> None:
    rule = labels_in(Domain("labels of 0 or more", lowest=0, hint="do this"), "objective count:poisson")
    assert rule(block([0, 3]), None) is None
    found = rule(block([1, 0.25, -0.1, -7]), None)
    assert found is not None
    assert (found.row, found.hint) == (2, "do this")
    assert found.message == "label -0.1 is invalid: objective count:poisson needs labels of 0 or more"
    several = rule(block([[1, 2], [3, -4], [-5, 6]]), None)
    assert several is not None
    assert (several.row, several.message.split(" is")[0]) == (1, "label -4")


CODES = [
    (-1, "code -1 of categorical feature 'b' is invalid: a code is a whole number from 0 to 999,999"),
    (0.5, "code 0.5 of categorical feature 'b' is invalid"),
    (5_000_000, "code 5000000 of categorical feature 'b' is invalid"),
    (1_000_000, "code 1000000 of categorical feature 'b' is invalid"),
    (1e30, "code 1e+30 of categorical feature 'b' is invalid"),
]


@pytest.mark.parametrize(("value", "message"), CODES)
@pytest.mark.parametrize("wanted", ["b", "1"])
def test_a_value_that_is_no_code_is_named(value: float, message: str, wanted: str) -> None:
    features = np.array([[0.5, 0], [-1, NAN], [NAN, 999_999], [7, value], [7, -5]], np.float32)
    found = codes_of([wanted])(block([0] * 5, features), ("a", "b"))
    assert found is not None
    assert found.row == 3
    assert found.message.startswith(message.replace("'b'", f"'{wanted}'"))
    assert ("pandas" in found.hint) is (value == -1)
    assert codes_of([wanted])(block([0] * 3, features[:3]), ("a", "b")) is None


@pytest.mark.parametrize("wanted", ["2", "f2"])
def test_codes_of_sparse_rows(wanted: str) -> None:
    values, columns, counts = np.array([1, 3, 0.5, -2], np.float32), np.array([0, 2, 0, 2]), np.array([2, 0, 2])
    found = codes_of([wanted])(block([0, 1, 0], Sparse(values, columns, counts, 3)), None)
    assert found is not None
    assert (found.row, found.message.partition(" is")[0]) == (2, f"code -2 of categorical feature '{wanted}'")
    assert codes_of(["9"])(block([0, 1, 0], Sparse(values, columns, counts, 3)), None) is None


def test_codes_below_0_may_be_allowed() -> None:
    features = np.array([[-3], [16_777_216], [16_777_218]], np.float32)
    found = codes_of(["0"], largest=2**24, may_be_negative=True)(block([0] * 3, features), ("a",))
    assert found is not None
    assert found.row == 2


@pytest.mark.parametrize(
    ("value", "text"),
    [(3, "3"), (-0.1, "-0.1"), (1e-7, "0.0000001"), (16_777_216, "16777216"), (1e30, "1e+30"), (math.inf, "inf")],
)
def test_a_number_is_spelt_as_it_was_written(value: float, text: str) -> None:
    assert spell(float(np.float32(value))) == text


def test_a_scan_keeps_the_first_row_that_breaks_any_rule() -> None:
    low, high = Domain("labels of 0 or more", lowest=0), Domain("labels of 5 or less", highest=5)
    scan = Scan(labels_in(low, "this"), labels_in(high, "that"))
    scan(block([1, 2]), None)
    scan.check()
    scan(block([1, 6, -1]), None)
    scan(block([-9]), None)
    with pytest.raises(DataError, match=r"^train/a\.csv:101: label 6 is invalid: that needs labels of 5 or less"):
        scan.check()


def test_of_several_members_the_first_with_a_fault_is_named() -> None:
    raise_first(["algo-1", "algo-2"], [None, None])
    with pytest.raises(DataError, match=r"^algo-2: train/a\.csv:3: wrong\n  hint: do this"):
        raise_first(["algo-1", "algo-2", "algo-3"], [None, Fault("train/a.csv:3: wrong", "do this"), Fault("x")])
    with pytest.raises(DataError, match=r"^train/a\.csv:3: wrong"):
        raise_first(["algo-1"], [Fault("train/a.csv:3: wrong")])


# ---- as channels are read ----


def write(directory: Path, name: str, content: str) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(content)
    return directory


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("b.csv", "y,x\n1,2\n\n-1,2\n", "train/b.csv:4"),
        ("b.libsvm", "1 0:2\n-1 0:2\n", "train/b.libsvm:2"),
    ],
)
def test_each_format_names_the_row(tmp_path: Path, name: str, content: str, place: str) -> None:
    directory = write(tmp_path / "train", name, content)
    rule = labels_in(Domain("labels of 0 or more", lowest=0), "this")
    for read in (read_table, lambda *given, **more: list(read_blocks(*given, **more))):
        scan = Scan(rule)
        read(directory, inspect=scan)
        with pytest.raises(DataError, match=f"^{place}: label -1 is invalid"):
            scan.check()


def test_a_row_of_a_table_is_found_in_its_file_again(tmp_path: Path) -> None:
    directory = write(tmp_path / "test", "a.csv", "1,2\n0,2\n")
    write(directory, "b.csv", "0,1\n7,1\n")
    table = read_table(directory)
    channel = Channel(name="test", path=directory)
    assert find_place(channel, 3, ColumnSpec()) == "test/b.csv:2"
    assert find_place(Channel(name="test", path=directory, input_mode="Pipe"), 3, ColumnSpec()) == "channel test, row 4"
    check_known(table, (0, 1, 7), channel, ColumnSpec())
    with pytest.raises(DataError, match=r"^test/b\.csv:2: label 7 does not occur in training \(in 1 row\)"):
        check_known(table, (0, 1), channel, ColumnSpec())
