"""What follows from findings, and how they are told."""

import itertools

import msgspec
import pytest

from trainbox.comm.member_loss import OTHER_VERSION
from trainbox.contract.failures.diagnosis import Diagnosis
from trainbox.diagnostics.finding import Finding, in_words
from trainbox.health.checks import CHECKS, amount, explanation, found, unfinished
from trainbox.health.report import HostChecks, compare_hosts, diagnose, evaluate

GOOD = found("host.disk", "algo-1", True, 2**40, device="model")
REMAP = found("nvml.row_remap_failed", "algo-2", False, "yes", device="gpu3", limit="no")
ECC = found("nvml.ecc_uncorrected", "algo-2", False, 3, device="gpu3", limit=0)
DISK = found("host.disk", "algo-1", False, 2**20, device="model", limit=2**28)
SLOW = found("nvml.throttle", "algo-1", False, "power brake", device="gpu0")


def why(*findings: Finding) -> Diagnosis:
    diagnosis = diagnose(findings)
    assert diagnosis is not None
    return diagnosis


def test_a_finding_has_the_keys_of_the_report_in_their_order() -> None:
    keys = ["check", "host", "device", "status", "value", "limit", "class", "hint"]
    assert list(msgspec.json.decode(msgspec.json.encode(REMAP))) == keys


def test_sound_hosts_go_on() -> None:
    report = evaluate([GOOD], {}, strict=False)
    assert (report.exit_code, report.diagnosis) == (0, None)
    assert report.line == "health: sound: 1 checks on 1 host(s)"


def test_hardware_ends_the_job_with_host_device_and_check_in_front() -> None:
    found = why(GOOD, REMAP, ECC)
    assert (found.kind, found.exit_code, found.host, found.device) == ("hardware", 78, "algo-2", "gpu3")
    assert (
        found.cause
        == "HARDWARE algo-2 gpu3 nvml.row_remap_failed: yes (limit: no); also algo-2 gpu3 nvml.ecc_uncorrected"
    )
    assert found.hint.startswith("repair or replace the node")


def test_configuration_comes_first_and_hardware_is_still_told() -> None:
    found = why(REMAP, DISK)
    assert found.exit_code == 64
    assert found.cause.startswith("CONFIGURATION algo-1 model host.disk: 1 MiB (limit: 256 MiB); also algo-2 gpu3 ")


def test_a_finding_about_the_host_itself_keeps_the_place_of_the_device() -> None:
    assert why(found("host.arrival", "algo-3", False, "never arrived")).cause.startswith(
        "HARDWARE algo-3 - host.arrival: never arrived (limit: "
    )


def test_warnings_go_on_unless_strict() -> None:
    report = evaluate([SLOW], {}, strict=False)
    assert report.diagnosis is None
    assert "1 warning(s): algo-1 gpu0 nvml.throttle" in report.line
    report = evaluate([SLOW], {}, strict=True)
    assert report.exit_code == 78
    assert report.line.startswith("health: NOT sound: HARDWARE algo-1 gpu0 nvml.throttle")


def test_what_passes_by_itself_never_ends_a_job() -> None:
    passing = found("nvml.xid", "algo-1", False, "Xid 31", device="gpu0", kind="transient", soft=True)
    hung = unfinished("host.shm", "algo-1", "no end", device="", seconds=20)
    assert (hung.status, hung.kind) == ("fail", "transient")
    report = evaluate([passing, hung], {}, strict=True)
    assert report.diagnosis is None
    assert "2 warning(s)" in report.line


def test_a_hard_check_that_hangs_ends_the_job() -> None:
    hung = unfinished("host.write", "algo-1", "not finished after 20 s", device="model", seconds=20)
    assert (hung.status, hung.value, hung.limit) == ("fail", "did not finish", "20 s")
    assert why(hung).exit_code == 64


def test_a_long_list_is_cut() -> None:
    many = [found("host.dns", f"algo-{n}", False, "no address", device="algo-9") for n in range(9)]
    assert why(*many).cause.count("host.dns") == 6
    assert " and 3 more" in why(*many).cause


@pytest.mark.parametrize("order", list(itertools.permutations([GOOD, REMAP, DISK, SLOW])))
def test_the_judgement_does_not_depend_on_who_spoke_first(order: tuple[Finding, ...]) -> None:
    assert evaluate(order, {}, strict=False).diagnosis == diagnose([DISK, REMAP, SLOW])


def test_of_three_hosts_the_one_that_differs_is_named_and_of_two_the_second() -> None:
    versions = {f"algo-{n}": {"torch": version} for n, version in enumerate(["2.12", "2.13", "2.13"], start=1)}
    said = {host: HostChecks((), own) for host, own in versions.items()}
    (bad,) = [one for one in compare_hosts(said, {}, strict=False).findings if one.status == "fail"]
    assert (bad.check, bad.host, bad.value, bad.limit) == ("versions.torch", "algo-1", "2.12", "2.13 on algo-2")
    del said["algo-3"]
    (bad,) = [one for one in compare_hosts(said, {}, strict=False).findings if one.status == "fail"]
    assert (bad.host, bad.value, bad.limit) == ("algo-2", "2.13", "2.12 on algo-1")


def test_a_slow_gpu_is_held_against_the_median_of_the_job() -> None:
    speeds = [1500.0, 1490.0, 1510.0, 900.0]
    said = {
        f"algo-{n}": HostChecks((), {}, {"gpu0": {"device": speed, "to device": 25.0}})
        for n, speed in enumerate(speeds)
    }
    slow = [
        one
        for one in compare_hosts(said, {}, strict=False).findings
        if one.status != "pass" and one.check != "host.clock"
    ]
    assert [(one.check, one.host, one.device, one.status, one.value) for one in slow] == [
        ("gpu.bandwidth", "algo-3", "gpu0 device", "warn", 900.0)
    ]
    assert in_words(slow[0], amount) == "900 GB/s (limit: 1196 GB/s)"


def test_a_host_of_another_version_is_configuration() -> None:
    report = evaluate([], {"algo-2": OTHER_VERSION}, strict=False)
    assert report.exit_code == 64


def test_a_check_that_only_another_version_knows_is_still_told() -> None:
    new = Finding("host.moon", "algo-2", "", "fail", "full", "new", "hardware")
    report = evaluate([new, GOOD], {}, strict=False)
    assert [one.check for one in report.findings] == ["host.disk", "host.moon"]
    assert report.diagnosis is not None
    assert report.diagnosis.cause == "HARDWARE algo-2 - host.moon: full (limit: new)"


def test_the_explanation_names_every_check_code_and_setting() -> None:
    text = explanation()
    assert all(name in text for name in CHECKS)
    assert all(f"exit code {code}" in text for code in (64, 78))
    assert "EnableInfraCheck" in text
    assert "MaximumRetryAttempts" in text
