"""What ECR's answers about a candidate come to; tests/image/test_ci_image.py asks a stand-in for ECR over HTTP."""

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tools.ci import findings
from tools.ci.registry import Name
from tools.ci.scan import scan

NAME = Name("123456789012.dkr.ecr.eu-central-1.amazonaws.com", "trainbox-candidate", "tag")
DIGEST = "sha256:" + "d" * 64


def finding(name: str, severity: str, *related: str, package: str = "libexpat1", **more: Any) -> dict[str, Any]:
    """As an enhanced scan has it."""
    details = {
        "vulnerabilityId": name,
        "relatedVulnerabilities": list(related),
        "vulnerablePackages": [{"name": package, "version": "2.5"}],
    }
    return {"severity": severity, "title": name, "packageVulnerabilityDetails": details, **more}


class Ecr:
    """Answers of ECR, which has scanned an image; the findings come in pages of one."""

    class exceptions:  # noqa: N801 - botocore's name
        class ScanNotFoundException(Exception):  # noqa: N818
            """Botocore's."""

        class ImageNotFoundException(Exception):  # noqa: N818
            """Botocore's."""

    def __init__(self, *found: dict[str, Any], counts: dict[str, int] | None = None, kind: str = "ENHANCED") -> None:
        self.found, self.kind = found, kind
        severities = [each["severity"] for each in found]
        self.counts = {each: severities.count(each) for each in severities} if counts is None else counts

    def get_registry_scanning_configuration(self) -> dict[str, Any]:
        return {"scanningConfiguration": {"scanType": self.kind, "rules": []}}

    def describe_image_scan_findings(self, **asked: Any) -> dict[str, Any]:
        assert asked["imageId"] == {"imageDigest": DIGEST}
        assert asked["registryId"] == "123456789012"
        return {"imageScanStatus": {"status": "ACTIVE"}}

    def get_paginator(self, _: str) -> "Ecr":
        return self

    def paginate(self, **_: Any) -> Iterator[dict[str, Any]]:
        for each in self.found or [None]:
            listed = [] if each is None else [each]
            yield {"imageScanFindings": {"enhancedFindings": listed, "findingSeverityCounts": self.counts}}


def judge(ecr: Ecr, **env: str) -> None:
    scan(lambda: ecr, NAME, DIGEST, env)


def test_the_findings_of_every_page_count(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"trainbox-candidate:tag: 2 findings of HIGH or worse"):
        judge(Ecr(finding("CVE-1", "LOW"), finding("CVE-2", "HIGH"), finding("CVE-3", "CRITICAL")))
    lines = [line for line in capsys.readouterr().err.splitlines() if "CVE" in line]
    assert [line.split()[1:3] for line in lines] == [["CRITICAL", "CVE-3"], ["HIGH", "CVE-2"]]


def test_a_finding_that_a_rule_of_inspector_suppresses_counts() -> None:
    with pytest.raises(SystemExit, match="1 findings of HIGH"):
        judge(Ecr(finding("CVE-1", "HIGH", status="SUPPRESSED")))


def test_a_severity_that_nobody_knows_counts() -> None:
    with pytest.raises(SystemExit, match="1 findings of HIGH"):
        judge(Ecr(finding("CVE-1", "DREADFUL")))


def test_findings_that_are_counted_and_not_listed_fail() -> None:
    with pytest.raises(SystemExit, match=r"ECR counts 3 findings of HIGH .* and lists 1"):
        judge(Ecr(finding("CVE-1", "HIGH"), counts={"HIGH": 3}))


def test_an_image_without_findings_passes_where_python_was_looked_at_too(capsys: pytest.CaptureFixture[str]) -> None:
    judge(Ecr())
    assert "findings of ECR: none" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="basic scanning"):
        judge(Ecr(kind="BASIC"))


def test_an_allowed_finding_passes_by_any_of_its_names_and_in_its_package_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    day = dt.datetime.now(dt.UTC).date() + dt.timedelta(days=9)
    path = tmp_path / "allowed-findings.toml"
    path.write_text(
        f'[[allowed]]\nid = "GHSA-7"\npackage = "libexpat1"\nreason = "Nothing in it parses XML."\nuntil = {day}\n'
    )
    monkeypatch.setattr(findings, "ALLOWED", path)
    judge(Ecr(finding("CVE-1", "CRITICAL", "GHSA-7")))
    assert f"allowed until {day}: CRITICAL CVE-1 libexpat1 2.5: Nothing in it parses XML." in capsys.readouterr().err
    with pytest.raises(SystemExit, match="1 findings"):
        judge(Ecr(finding("CVE-1", "CRITICAL", "GHSA-7", package="python3")))
