"""Which processes of a host get the key of its job, and what a job without one says."""

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.trees import Tree
from trainbox.contract.credentials.peer_key import PEER_KEY_VARIABLE, PeerKey
from trainbox.contract.environment import Machine
from trainbox.contract.job import Job, read_job
from trainbox.supervisor.plan import Plan, plan
from trainbox.supervisor.preflight import plan_checks
from trainbox.supervisor.program.choice import Program, bundled_directory, needs_key
from trainbox.system.name_resolution import describe_protection

KEY = PeerKey(bytes(range(32)))
ENV = {PEER_KEY_VARIABLE: KEY.text, "OWN": "1"}
TWO = ("algo-1", "algo-2")
PROGRAM = Program(name="train.py", command=(sys.executable, "train.py"), directory=Path("/opt/ml/code"))
JOINS = msgspec.structs.replace(PROGRAM, needs_key=True)


def job(*hosts: str, env: dict[str, str] | None = None, **settings: Any) -> Job:
    found = read_job(Path("/nowhere"), ENV if env is None else env)
    found = msgspec.structs.replace(found, hosts=hosts or ("algo-1",), current_host="algo-1")
    return msgspec.structs.replace(found, settings=msgspec.structs.replace(found.settings, **settings))


def planned(given: Job, program: Program, **machine: Any) -> Plan:
    return plan(given, program, env=ENV, machine=Machine(**machine))


def keys(found: Plan) -> list[str | None]:
    """What each process of a plan gets for a key."""
    assert all(child.environment["OWN"] == "1" for child in (*found.children, *found.sidecars))
    return [child.environment.get(PEER_KEY_VARIABLE) for child in (*found.children, *found.sidecars)]


def test_only_a_script_that_joins_others_gets_the_key() -> None:
    assert keys(planned(job(*TWO), JOINS)) == [KEY.text]
    assert keys(planned(job(processes_per_host=2), JOINS)) == [KEY.text] * 2
    assert keys(planned(job(*TWO), PROGRAM)) == [None]
    assert keys(planned(job(), JOINS)) == [None]
    assert keys(planned(job(*TWO, env={}), JOINS)) == [None]


def test_neither_the_agent_nor_what_watches_the_gpus_gets_it() -> None:
    found = planned(job(*TWO, launcher="torchrun"), JOINS, gpus=1, modules=("torch",))
    assert [child.name for child in (*found.children, *found.sidecars)] == ["agent", "the watch over the GPUs"]
    assert keys(found) == [None, None]


def test_the_health_checks_get_it() -> None:
    given = job(*TWO, preflight="fast")
    for env in (ENV, {"OWN": "1"}):
        (child,) = plan_checks(given, planned(given, PROGRAM), env=env, scratch=Path("/s")).children
        assert child.environment[PEER_KEY_VARIABLE] == KEY.text
        assert KEY.text not in child.argv
    keyless = job(*TWO, env={}, preflight="fast")
    (child,) = plan_checks(keyless, planned(keyless, PROGRAM), env={}, scratch=Path("/s")).children
    assert PEER_KEY_VARIABLE not in child.environment


@pytest.mark.parametrize(
    ("name", "source", "needed"),
    [
        ("train.py", "print(1)", False),
        ("train.py", "import trainbox\nfrom trainbox.torch import session", False),
        ("train.py", "from trainbox.comm import join", True),
        ("train.py", "def main():\n    from trainbox.xgboost import collective", True),
        ("train.py", "import trainbox.sklearn as forests", True),
        ("train.py", "import trainbox.xgboosted", False),
        ("run.sh", "python train.py", True),  # nobody knows what it starts
    ],
)
def test_who_may_join_others_is_read_from_the_source(tmp_path: Path, name: str, source: str, needed: bool) -> None:
    (tmp_path / name).write_text(source)
    command = (sys.executable, name) if name.endswith(".py") else ("/bin/sh", f"./{name}")
    assert needs_key(Program(name=name, command=command, directory=tmp_path), tmp_path) == needed


def test_a_module_of_the_code_that_joins_counts_and_an_installed_one_may() -> None:
    command = (sys.executable, "-m", "package.train")
    assert needs_key(Program(name="package.train", command=command, directory=Path("/nowhere")), Path("/nowhere"))


@pytest.mark.parametrize(
    ("script", "needed"), [("xgboost_train.py", True), ("random_forest_train.py", True), ("pytorch_train.py", False)]
)
def test_the_bundled_scripts_that_join_are_known(script: str, needed: bool) -> None:
    directory = bundled_directory()
    assert needs_key(Program(name=script, command=(sys.executable, script), directory=directory), directory) == needed


def test_a_job_without_a_key_says_what_protects_it_and_how_to_set_one() -> None:
    said = describe_protection(job(*TWO, env={}))
    assert "\n" not in said
    for words in ("TRAINBOX_PEER_KEY is not set", "security group", "algo-1", "openssl rand -hex 32"):
        assert words in said
    assert describe_protection(job(*TWO)) == ""


SHOWS = """
import os, sys
print([name for name in os.environ if name.startswith("TRAINBOX_PEER")], flush=True)
sys.exit("failed with " + os.environ.get("TRAINBOX_PEER_KEY", "no key"))
"""


@pytest.mark.process
@pytest.mark.parametrize("current", ["127.0.0.1", "127.0.0.2"])
def test_without_a_key_the_first_host_says_so_once(tmp_path: Path, current: str) -> None:
    with Tree(tmp_path) as tree:
        run = tree.hosts("127.0.0.1", "127.0.0.2", current=current).program(SHOWS).run()
    assert run.log.count("TRAINBOX_PEER_KEY is not set") == (current == "127.0.0.1")


@pytest.mark.process
@pytest.mark.parametrize(("imports", "names"), [("", b"[]"), ("import trainbox.comm", b"['TRAINBOX_PEER_KEY']")])
def test_a_script_that_fails_shows_no_key_in_anything_of_ours(tmp_path: Path, imports: str, names: bytes) -> None:
    with Tree(tmp_path) as tree:
        tree.hosts("127.0.0.1", "127.0.0.2").program(f"{imports}\n{SHOWS}")
        run = tree.run(TRAINBOX_PEER_KEY=KEY.text)
    assert run.stdout.strip() == names
    ours = "".join(line for line in run.log.splitlines() if line.startswith("trainbox: "))
    assert "is not set" not in ours
    assert KEY.text not in ours
    assert run.failure is not None
    assert KEY.text not in run.failure
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.text in path.read_text(errors="replace")]


@pytest.mark.process
def test_a_key_of_the_wrong_form_ends_the_job_and_is_not_shown(tmp_path: Path) -> None:
    with Tree(tmp_path) as tree:
        run = tree.program("print(1)").run(TRAINBOX_PEER_KEY="correct horse battery staple")
    assert run.code == 2
    assert run.failure is not None
    assert "the variable TRAINBOX_PEER_KEY: found 28 characters" in run.failure
    assert "horse" not in run.failure + run.log
