"""Labels that are the bounds of a time: what is missing or infinite is a row whose time is not known on that side."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.support.writers import frame, record, tensor, write
from trainbox.data import ColumnSpec, read_blocks, read_table
from trainbox.errors import DataError

BOUNDS = ColumnSpec(labels=2, bounds=True)
CENSORED = [[1, 2], [3, np.inf], [3, np.inf], [0, 5], [0, 5], [4, 4]]


def put(directory: Path, bounds: Sequence[Sequence[float | None]]) -> Path:
    directory.mkdir()
    lower, upper = zip(*bounds, strict=True)
    columns = {"lo": pa.array(lower, pa.float64()), "hi": pa.array(upper, pa.float64())}
    columns["x"] = pa.array([0.5] * len(bounds))
    pa.parquet.write_table(pa.table(columns), directory / "a.parquet")
    return directory


@pytest.mark.parametrize("infinite", ["inf", "INF", "+Infinity", "infinity"])
def test_a_bound_of_csv_may_be_missing_or_infinite(tmp_path: Path, infinite: str) -> None:
    text = f"lo,hi,x\n1,2,0.5\n3,{infinite},0.1\n3,,0.1\n,5,0.2\n-{infinite.lstrip('+')},5,0.2\n4,4,0.3\n"
    table = read_table(write(tmp_path, {"a.csv": text}), columns=BOUNDS)
    assert table.labels.tolist() == CENSORED
    assert table.feature_names == ("x",)


def test_a_bound_of_parquet_may_be_missing_or_infinite(tmp_path: Path) -> None:
    bounds = [(1, 2), (3, np.inf), (3, None), (None, 5), (-np.inf, 5), (4, 4)]
    table = read_table(put(tmp_path / "train", bounds), columns=BOUNDS)
    assert table.labels.tolist() == CENSORED
    assert [block.labels.tolist() for block in read_blocks(tmp_path / "train", columns=BOUNDS, rows=3)] == [
        CENSORED[:3],
        CENSORED[3:],
    ]


@pytest.mark.parametrize(
    ("lower", "upper", "fault"),
    [
        (None, None, "both bounds of the label are missing"),
        (np.inf, np.inf, "the lower bound of the label is infinite"),
        (-1, 2, "the lower bound of the label is negative"),
        (0, 0, "the upper bound of the label is not above 0"),
        (3, 2, "the upper bound of the label is below the lower one"),
        (3, -np.inf, "the upper bound of the label is"),
    ],
)
def test_bounds_of_no_time_are_found_with_their_row(
    tmp_path: Path, lower: float | None, upper: float | None, fault: str
) -> None:
    cells = ",".join("" if bound is None else str(bound) for bound in (lower, upper))
    directory = write(tmp_path, {"a.csv": f"1,2,0.5\n\n{cells},0.5\n"})
    with pytest.raises(DataError, match=rf"train/a\.csv:3: {fault}"):
        read_table(directory, columns=BOUNDS)
    with pytest.raises(DataError, match=rf"parquet/a\.parquet, row 2: {fault}.*\n.*no upper one"):
        read_table(put(tmp_path / "parquet", [(1, 2), (lower, upper)]), columns=BOUNDS)


def test_a_feature_may_not_be_infinite_beside_bounds(tmp_path: Path) -> None:
    directory = write(tmp_path, {"a.csv": "1,inf,0.5\n1,inf,inf\n"})
    with pytest.raises(DataError, match=r"train/a\.csv:2: column 3: 'inf' is infinite"):
        read_table(directory, columns=BOUNDS)


def test_records_have_bounds_and_libsvm_has_no_room_for_them(tmp_path: Path) -> None:
    content = b"".join(frame(record(tensor([0.5]), tensor(labels))) for labels in ([1.0, 2.0], [3.0, np.inf]))
    directory = write(tmp_path, {"a.pbr": content}, "records")
    assert read_table(directory, columns=BOUNDS).labels.tolist() == [[1, 2], [3, np.inf]]
    with pytest.raises(DataError, match=r"libsvm, whose rows have one label"):
        read_table(write(tmp_path, {"a.libsvm": "1 0:2\n"}), columns=BOUNDS)
    with pytest.raises(DataError, match=r"a\.pbr, record 1 .* has 1 labels, where two bounds"):
        read_table(write(tmp_path, {"a.pbr": frame(record(tensor([0.5]), tensor([1.0])))}, "one"), columns=BOUNDS)


def test_without_bounds_two_labels_are_finite(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train/a\.csv:1: column 2: 'inf' is infinite"):
        read_table(write(tmp_path, {"a.csv": "1,inf,0.5\n"}), columns=ColumnSpec(labels=2))
    with pytest.raises(ValueError, match="bounds are two"):
        ColumnSpec(bounds=True)
