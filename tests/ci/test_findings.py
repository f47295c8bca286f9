"""Which findings fail a build, and what the list of allowed ones must say."""

import datetime as dt
from pathlib import Path

import pytest

from tools.ci import findings
from tools.ci.findings import Finding, judge, read_allowed

TODAY = dt.date(2026, 12, 1)
ENTRY = {
    "id": '"CVE-2026-1"',
    "package": '"libexpat1"',
    "reason": '"No program of the image parses XML."',
    "until": "2027-01-31",
}


def written(directory: Path, **changes: str | None) -> Path:
    lines = {**ENTRY, **changes}
    path = directory / "allowed-findings.toml"
    path.write_text("[[allowed]]\n" + "".join(f"{key} = {value}\n" for key, value in lines.items() if value))
    return path


def test_an_entry_is_for_one_finding_of_one_package(tmp_path: Path) -> None:
    allowed = read_allowed(written(tmp_path), TODAY)
    same = Finding(("CVE-2026-1",), "HIGH", "libexpat1", "2.5")
    elsewhere = Finding(("CVE-2026-1",), "HIGH", "python3", "3.11")
    other = Finding(("CVE-2026-2", "GHSA-1"), "CRITICAL", "libexpat1", "2.5")
    bad, excused = judge([same, elsewhere, other], ("CRITICAL", "HIGH"), allowed)
    assert bad == [other, elsewhere]
    assert [finding for finding, _ in excused] == [same]


def test_a_finding_without_a_known_rating_counts_as_the_worst() -> None:
    unrated, mild = Finding(("A",), "", "a", "1"), Finding(("B",), "LOW", "b", "1")
    strange = Finding(("C",), "APOCALYPTIC", "c", "1")
    assert judge([mild, unrated, strange], ("CRITICAL",), ())[0] == [unrated, strange]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"until": "2026-11-30"}, "expired on 2026-11-30"),
        ({"until": "2027-12-01"}, "more than 184 days away"),
        ({"until": '"2027-01-31"'}, "until is '2027-01-31'"),
        ({"until": "2027-01-31T00:00:00"}, "a day without quotes"),
        ({"until": None}, "found id, package, reason"),
        ({"reason": '"wontfix"'}, "the reason is 'wontfix'"),
        ({"reason": None}, "found id, package, until"),
        ({"severity": '"HIGH"'}, "found id, package, reason, severity, until"),
        ({"package": "= 1"}, "is no TOML"),
    ],
)
def test_an_entry_that_is_no_dated_exception_with_a_reason_ends_the_build(
    tmp_path: Path, changes: dict[str, str | None], said: str
) -> None:
    with pytest.raises(SystemExit, match=said):
        read_allowed(written(tmp_path, **changes), TODAY)


def test_the_list_of_this_repository_is_valid_today() -> None:
    read_allowed(findings.ALLOWED, dt.datetime.now(dt.UTC).date())
