"""`trainbox run` makes a key for the hosts of each attempt, and shows it nowhere."""

import argparse
import datetime as dt
import hashlib
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.forks import own_environment
from tests.support.runs import COMMAND, record
from tests.support.waiting import LIMIT
from trainbox.cli.run import add_arguments
from trainbox.cli.run_command import read_command
from trainbox.contract.credentials.checkpoint_keys import KEY_BYTES
from trainbox.contract.credentials.peer_key import PEER_KEY_VARIABLE
from trainbox.errors import RunError
from trainbox.local import request as request_module
from trainbox.local.backends.confinement import Confinement
from trainbox.local.backends.engine import Image
from trainbox.local.backends.isolation import Isolation, in_containers
from trainbox.local.plan import RunPlan, plan_run
from trainbox.local.request import RunRequest, read_request

NOW = dt.datetime(2026, 11, 29, tzinfo=dt.UTC)
CONTAINERS = in_containers(Image("trainbox:cpu", memory=16_000_000_000), Confinement(network="internal"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(request_module, "find_isolation", lambda: Isolation(kind="root", at_opt_ml=True))
    monkeypatch.setattr(request_module, "find_free_port", lambda: 23456)
    (tmp_path / "train.py").write_text("print(1)\n")
    return tmp_path


def ask(here: Path, *arguments: str, env: Mapping[str, str] | None = None) -> RunRequest:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(["train.py", *arguments])
    return read_request(*read_command(args, env=env or {}, cwd=here), now=NOW)


def keys(plan: RunPlan) -> list[str | None]:
    return [host.environment.get(PEER_KEY_VARIABLE) for host in plan.hosts]


def test_jobs_of_several_hosts_or_processes_get_a_key_that_no_other_has(here: Path) -> None:
    plans = [
        plan_run(ask(here, *arguments)) for arguments in (["--hosts", "3"], ["--hosts", "3"], ["--processes", "2"])
    ]
    found = [set(keys(plan)) for plan in plans]
    assert all(len(one) == 1 for one in found)
    made = [key for one in found for key in one if key]
    assert len(set(made)) == 3
    assert all(len(bytes.fromhex(key)) == KEY_BYTES for key in made)
    assert keys(plan_run(ask(here))) == [None]


def test_containers_get_it_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_module, "find_containers", lambda *_: CONTAINERS)
    found = keys(plan_run(ask(here, "--hosts", "2", "--docker", "trainbox:cpu")))
    assert found[0] == found[1] is not None


def test_a_key_of_the_shell_is_that_of_another_job(here: Path) -> None:
    plan = plan_run(ask(here, env={PEER_KEY_VARIABLE: "ab" * 32}))
    assert keys(plan) == [None]
    assert PEER_KEY_VARIABLE in plan.removed
    assert keys(plan_run(ask(here, "--hosts", "2", env={PEER_KEY_VARIABLE: "ab" * 32})))[0] != "ab" * 32


def test_it_is_made_here_and_not_given(here: Path) -> None:
    with pytest.raises(RunError, match=f"--env {PEER_KEY_VARIABLE}: trainbox run sets or clears this one itself"):
        ask(here, "--hosts", "2", "--env", f"{PEER_KEY_VARIABLE}={'ab' * 32}")


def test_request_and_plan_do_not_show_it_when_they_are_printed(here: Path) -> None:
    request = ask(here, "--hosts", "2")
    assert request.peer_key is not None
    assert request.peer_key.text not in repr(request)
    assert request.peer_key.text in request.secrets


#: All hosts tell each other a digest of what they were given: it is the same, and none of it is shown.
SCRIPT = """
import hashlib, os
import trainbox.toolkit
from trainbox.comm import find_members, join

job = trainbox.current_job()
members = find_members(job, trainbox.toolkit.current_ranks())
with join(members, timeout=60, limit=20, port=job.port) as communicator:
    digests = communicator.gather(hashlib.sha256(os.environ["TRAINBOX_PEER_KEY"].encode()).hexdigest(), str)
print(len(digests), "hosts,", len(set(digests)), "key")
print("the hosts prove themselves:", job.peer_key is not None)
trainbox.save("key-digest", digests[0])
"""


@pytest.mark.process
def test_the_hosts_of_a_job_prove_themselves_and_the_key_is_in_no_file_or_line(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    done = subprocess.run(
        [*COMMAND, "train.py", "--hosts", "2", "--out", "out"],
        cwd=tmp_path,
        env=own_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "out"
    for host in record(out)["hosts"]:
        log = (out / host["log"]).read_text()
        assert "2 hosts, 1 key" in log
        assert "the hosts prove themselves: True" in log
        assert "is not set" not in log
    digest = (out / "model" / "key-digest").read_text()
    texts = [path.read_text(errors="replace") for path in out.rglob("*") if path.is_file()]
    shown = re.findall(r"[0-9a-f]{64}", "\n".join([*texts, done.stdout, done.stderr]))
    assert digest in shown
    assert digest not in {hashlib.sha256(text.encode()).hexdigest() for text in shown}


@pytest.mark.process
def test_a_dry_run_shows_three_stars(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import trainbox.comm\n")
    done = subprocess.run(
        [*COMMAND, "train.py", "--hosts", "2", "--out", "out", "--dry-run"],
        cwd=tmp_path,
        env=own_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr
    shown = [line for line in done.stdout.splitlines() if PEER_KEY_VARIABLE in line]
    assert {line.strip().removeprefix("environment: ") for line in shown} == {"TRAINBOX_PEER_KEY=***"}
