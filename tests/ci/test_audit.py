"""The gate before the push: known vulnerabilities of the image's Python packages, looked up by pip-audit."""

import datetime as dt
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.ci import fake_audit
from tools.ci.audit import lists, packages

ROOT = Path(__file__).parents[2]


class Gate(NamedTuple):
    """A checkout of the tools, with an inventory."""

    directory: Path

    def judge(
        self, answer: object = None, *, unreachable: bool = False, **env: str
    ) -> "subprocess.CompletedProcess[str]":
        programs = self.directory / "bin"
        if answer is not None:
            fake_audit.install(programs, answer, unreachable=unreachable)
        command = [sys.executable, "-m", "tools.ci.audit", "inventory.json"]
        known = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": os.environ.get("HOME", "/")}
        done = subprocess.run(
            command, cwd=self.directory, env={**known, **env}, capture_output=True, text=True, check=False, timeout=300
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def allow(self, text: str) -> None:
        (self.directory / "tools/ci/allowed-findings.toml").write_text(text)


@pytest.fixture
def gate(tmp_path: Path, inventory: dict[str, Any]) -> Gate:
    (tmp_path / "tools" / "ci").mkdir(parents=True)
    for path in (ROOT / "tools" / "ci").glob("*.*"):
        (tmp_path / "tools" / "ci" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "inventory.json").write_text(json.dumps(inventory))
    return Gate(tmp_path)


def vulnerability(name: str = "PYSEC-2026-1", *aliases: str) -> dict[str, object]:
    return {"id": name, "aliases": list(aliases), "fix_versions": [], "description": ""}


def test_a_package_of_another_index_is_looked_up_by_its_public_version_and_ours_is_not(
    inventory: dict[str, Any],
) -> None:
    found = packages(inventory)
    assert found == {
        "numpy": {"2.4.6"},
        "scikit-learn": {"1.9.1"},
        "torch": {"2.13.0"},
        "skops": {"0.16.0"},
        "pip": {"25.0.1"},
    }
    found["pip"].add("26.3")
    first, second = lists(found)
    assert first.splitlines() == [
        "numpy==2.4.6",
        "pip==25.0.1",
        "scikit-learn==1.9.1",
        "skops==0.16.0",
        "torch==2.13.0",
    ]
    assert second == "pip==26.3\n"


@pytest.mark.process
def test_an_image_without_known_vulnerabilities_passes_and_every_package_was_looked_up(gate: Gate) -> None:
    done = gate.judge({})
    assert done.returncode == 0, done.stderr
    assert "pip-audit looked up 5 packages and found 0 vulnerabilities" in done.stderr
    options, listed = json.loads((gate.directory / "bin/pip-audit.log").read_text())
    assert {"--strict", "--disable-pip", "--no-deps"} <= set(options)
    assert "pip==25.0.1" in listed, "the wheel that lies in the base image, too"


@pytest.mark.process
def test_a_vulnerability_of_a_package_fails(gate: Gate) -> None:
    done = gate.judge({"numpy": [vulnerability("PYSEC-2026-1", "CVE-2026-1")]})
    assert done.returncode == 1
    assert "PYSEC-2026-1 numpy 2.4.6" in done.stderr
    assert "in tools/ci/allowed-findings.toml" in done.stderr


@pytest.mark.process
@pytest.mark.parametrize(
    ("answer", "unreachable", "said"),
    [
        ({"numpy": None}, False, "numpy: Dependency not found"),
        ({"numpy": "forgotten"}, False, "it skipped numpy"),
        ({}, True, "could not connect"),
        (None, False, "pip-audit is not installed"),
    ],
    ids=["skipped", "left out", "unreachable", "not installed"],
)
def test_what_could_not_be_looked_up_fails_unless_that_is_allowed(
    gate: Gate, answer: object, unreachable: bool, said: str
) -> None:
    done = gate.judge(answer, unreachable=unreachable)
    assert done.returncode == 1
    assert "no vulnerabilities of Python packages were looked up" in done.stderr
    assert said in done.stderr
    done = gate.judge(answer, unreachable=unreachable, AUDIT_MISSING="warn")
    assert done.returncode == 0, done.stderr
    assert "AUDIT_MISSING=warn lets it pass" in done.stderr
    done = gate.judge(answer, unreachable=unreachable, AUDIT_MISSING="maybe")
    assert "AUDIT_MISSING: found 'maybe'" in done.stderr


@pytest.mark.process
def test_an_allowed_finding_passes_by_any_of_its_names_until_its_day(gate: Gate) -> None:
    answer = {"numpy": [vulnerability("PYSEC-2026-1", "CVE-2026-1")]}
    today = dt.datetime.now(dt.UTC).date()
    entry = '[[allowed]]\nid = "CVE-2026-1"\npackage = "numpy"\nreason = "No job loads such an array."\nuntil = {}\n'
    gate.allow(entry.format(today + dt.timedelta(days=30)))
    done = gate.judge(answer)
    assert done.returncode == 0, done.stderr
    assert "allowed until" in done.stderr
    assert "No job loads such an array." in done.stderr
    gate.allow(entry.format(today - dt.timedelta(days=1)))
    for findings in (answer, {}):
        done = gate.judge(findings)
        assert done.returncode == 1
        assert "expired on" in done.stderr
