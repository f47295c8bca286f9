"""ECR's findings about an image that it has."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import botocore.client

from tools.ci.findings import SEVERITIES, Finding, end_on, severities_to_fail_on
from tools.ci.messages import emit, fail
from tools.ci.registry import Name

_SCANNED = frozenset({"COMPLETE", "ACTIVE"})
_SCANNING = frozenset({"PENDING", "IN_PROGRESS"})
#: A scan that the push has asked for is known after some seconds, one of Inspector after a minute or two.
_SCAN_APPEARS_SECONDS = 180.0
_POLL_SECONDS = 2.0
_BASIC = (
    "ECR scans {0} with basic scanning, which sees only the operating system's packages, not Python's",
    "aws ecr put-registry-scanning-configuration --scan-type ENHANCED (docs/build-and-push.md); or set SCAN_BASIC=warn",
)


def scan(connect: Callable[[], botocore.client.BaseClient], name: Name, digest: str, env: Mapping[str, str]) -> None:
    """Fail on findings that are bad enough, and where ECR did not look, or not at everything."""
    failing = severities_to_fail_on(env.get("SCAN_FAIL_ON") or "HIGH")
    missing, basic = _choice(env, "SCAN_MISSING"), _choice(env, "SCAN_BASIC")
    if not failing:
        emit("SCAN_FAIL_ON=NONE: no findings of ECR are asked for")
        return
    try:
        seconds = float(env.get("SCAN_WAIT_SECONDS") or 600)
    except ValueError:
        fail(f"SCAN_WAIT_SECONDS: found {env['SCAN_WAIT_SECONDS']!r}", "a number of seconds")
    ecr = connect()
    if ecr.get_registry_scanning_configuration()["scanningConfiguration"].get("scanType") != "ENHANCED":
        what, hint = _BASIC
        if basic == "fail":
            fail(what.format(name), hint)
        emit(f"warning: {what.format(name)}; SCAN_BASIC=warn lets that do")
    status = _wait(ecr, name, digest, seconds)
    if status in _SCANNING:
        fail(f"the scan of {name} is {status} after {seconds:g} s", "run it again, or set SCAN_WAIT_SECONDS")
    if status not in _SCANNED:
        text = f"ECR has not scanned {name}: {status}"
        if missing == "fail":
            fail(text, f"let a filter of the registry's scanning name {name.repository}; or set SCAN_MISSING=warn")
        emit(f"warning: {text}; SCAN_MISSING=warn lets it pass")
        return
    counts, found = _read_findings(ecr, name, digest)
    emit(f"findings of ECR: {', '.join(f'{counts[each]} {each}' for each in SEVERITIES if counts.get(each)) or 'none'}")
    for each in failing:
        listed = sum(finding.severity == each for finding in found)
        if listed < counts.get(each, 0):
            fail(f"ECR counts {counts[each]} findings of {each} in {name} and lists {listed}", "run it again")
    end_on(str(name), found, failing)


def _choice(env: Mapping[str, str], variable: str) -> str:
    value = env.get(variable) or "fail"
    if value not in {"fail", "warn"}:
        fail(f"{variable}: found {value!r}", "one of fail, warn")
    return value


def _wait(ecr: botocore.client.BaseClient, name: Name, digest: str, seconds: float) -> str:
    """The status of the scan, once it has ended or the time is over.

    Returns:
        A status of ECR, or "NOT FOUND" where no scan was begun.
    """
    began = time.monotonic()
    while True:
        limit = seconds
        try:
            answer = ecr.describe_image_scan_findings(
                repositoryName=name.repository, imageId={"imageDigest": digest}, maxResults=1, **name.owner
            )
            status = str(answer["imageScanStatus"]["status"])
        except (ecr.exceptions.ScanNotFoundException, ecr.exceptions.ImageNotFoundException):
            status, limit = "NOT FOUND", min(seconds, _SCAN_APPEARS_SECONDS)
        left = limit - (time.monotonic() - began)
        if status not in _SCANNING | {"NOT FOUND"} or left <= 0:
            return status
        time.sleep(min(_POLL_SECONDS, left))


def _read_findings(ecr: botocore.client.BaseClient, name: Name, digest: str) -> tuple[Mapping[str, int], list[Finding]]:
    """How many ECR counts of each severity, and all of them, page by page."""
    counts: Mapping[str, int] = {}
    found: list[Finding] = []
    pages = ecr.get_paginator("describe_image_scan_findings")
    for page in pages.paginate(repositoryName=name.repository, imageId={"imageDigest": digest}, **name.owner):
        content = page.get("imageScanFindings", {})
        counts = content.get("findingSeverityCounts", counts)
        found += [*_basic(content.get("findings", ())), *_enhanced(content.get("enhancedFindings", ()))]
    return counts, found


def _basic(findings: Any) -> Iterator[Finding]:  # noqa: ANN401 - as ECR's API has them
    for each in findings:
        known = {item["key"]: item.get("value", "") for item in each.get("attributes", ())}
        package, version = known.get("package_name", "unknown"), known.get("package_version", "")
        yield Finding((each["name"],), each.get("severity", ""), package, version, each.get("uri", ""))


def _enhanced(findings: Any) -> Iterator[Finding]:  # noqa: ANN401
    """Those that a rule of Inspector suppresses count too: what is allowed stands in the repository."""
    for each in findings:
        details = each.get("packageVulnerabilityDetails", {})
        names = (
            details.get("vulnerabilityId") or each.get("title", "unknown"),
            *details.get("relatedVulnerabilities", ()),
        )
        for package in details.get("vulnerablePackages") or [{"name": "unknown"}]:
            version, where = package.get("version", ""), details.get("sourceUrl", "")
            yield Finding(names, each.get("severity", ""), package["name"], version, where)
