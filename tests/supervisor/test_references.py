"""`train` asks for the secrets that a request refers to: the real boto3 against a service on loopback."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.secret_service import ARN, KEY, PASSWORD, Service, serving
from tests.support.trees import Run, Tree
from tests.support.waiting import eventually

pytestmark = pytest.mark.process

pytest.importorskip("boto3")


@pytest.fixture
def service() -> Iterator[Service]:
    with serving() as running:
        yield running


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    with Tree(tmp_path / "ml") as built:
        yield built


def ours(run: Run) -> str:
    return "\n".join([line for line in run.log.splitlines() if line.startswith("trainbox: ")] + [run.failure or ""])


def test_the_script_gets_the_values_and_no_line_of_ours_has_them(tree: Tree, service: Service) -> None:
    tree.hyperparameters_from(
        {
            "password": "{{resolve:secretsmanager:db:SecretString:password}}",
            "port": "{{resolve:secretsmanager:db:SecretString:port}}",
            "url": "postgres://u:{{resolve:secretsmanager:db:SecretString:password}}@h/d",
            "elsewhere": f"{{{{resolve:secretsmanager:{ARN}:SecretString:password}}}}",
        }
    )
    tree.program(
        "import json, msgspec, os, sys, trainbox\n"
        "class Params(msgspec.Struct, frozen=True):\n"
        "    password: str\n    port: int\n    url: str\n    elsewhere: str\n"
        "found = trainbox.hyperparameters(Params)\n"
        "print(json.dumps([sys.argv[1:], os.environ['SM_HP_PASSWORD'], os.environ['MY_KEY'],"
        " msgspec.structs.asdict(found)]))\n"
        "raise ValueError(f'{found.password} {os.environ[\"MY_KEY\"]} {found.url}')\n"
    )
    run = tree.run(**service.env, MY_KEY="{{resolve:ssm-secure:/team/key}}")
    assert run.code == 1, run.log
    arguments, variable, key, params = json.loads(run.stdout)
    url = f"postgres://u:{PASSWORD}@h/d"
    assert arguments == ["--elsewhere", PASSWORD, "--password", PASSWORD, "--port", "5432", "--url", url]
    assert (variable, key) == (PASSWORD, KEY)
    assert params == {"password": PASSWORD, "port": 5432, "url": url, "elsewhere": PASSWORD}
    assert run.failure is not None
    assert run.failure.startswith("ValueError: *** *** ***")
    assert PASSWORD not in ours(run)
    assert KEY not in ours(run)
    assert "asking secretsmanager for db" in run.log
    # One question for each secret, where it is: the region of an ARN is its own.
    assert [(asked.get("SecretId") or asked["Name"], region) for _, asked, region in service.asked] == [
        ("db", "eu-west-1"),
        (ARN, "ap-south-1"),
        ("/team/key", "eu-west-1"),
    ]


def test_settings_are_read_when_what_they_refer_to_is_known(tree: Tree, service: Service) -> None:
    raw = json.dumps(["--pin", "{{resolve:ssm-secure:/team/key}}"])
    tree.hyperparameters_from({"trainbox_raw_arguments": raw})
    tree.program("import sys; print(sys.argv[1:]); sys.exit(f'wrong pin {sys.argv[2]}')")
    run = tree.run(**service.env, TRAINBOX_ARGUMENTS="{{resolve:ssm:/team/style}}")
    assert run.stdout.decode() == f"{['--pin', KEY]}\n", run.log
    assert str(run.failure).startswith("wrong pin ***\n")


def test_a_key_by_reference_reaches_nobody_that_the_key_itself_would_not_reach(tree: Tree, service: Service) -> None:
    tree.hyperparameters_from({"style": "{{resolve:ssm:/team/style}}"})
    tree.program("import os; print([name for name, value in os.environ.items() if 'abababab' in value])")
    run = tree.run(**service.env, TRAINBOX_PEER_KEY="{{resolve:ssm-secure:/team/peers}}")
    assert (run.code, run.stdout) == (0, b"[]\n"), run.log


def test_a_part_of_a_variable_is_hidden_by_itself(tree: Tree, service: Service) -> None:
    tree.program("import os; raise SystemExit(os.environ['OPTIONS'].partition(':')[2])")
    run = tree.run(**service.env, OPTIONS="a:{{resolve:ssm-secure:/team/key}}")
    assert str(run.failure).startswith("***\n")


def test_a_wrong_value_by_reference_is_not_repeated(tree: Tree, service: Service) -> None:
    tree.hyperparameters_from({"depth": "{{resolve:secretsmanager:plain}}"})
    tree.program(
        "import msgspec, trainbox\n"
        "class Params(msgspec.Struct, frozen=True):\n    depth: int\n"
        "trainbox.hyperparameters(Params)\n"
    )
    run = tree.run(**service.env)
    assert run.code == 6, run.log
    assert "hyperparameter 'depth' is ***, expected int" in str(run.failure)
    assert PASSWORD not in run.log


#: A reference, and what is said of it.
REFUSED = {
    "{{resolve:secretsmanager:denied}}": "secretsmanager denied cannot be read: AccessDeniedException: User: me",
    "{{resolve:ssm:denied}}": "needs ssm:GetParameter",
    "{{resolve:secretsmanager:absent}}": "secretsmanager absent cannot be read: ResourceNotFoundException",
    f"{{{{resolve:secretsmanager:{ARN}x}}}}": f"secretsmanager {ARN}x cannot be read",
    "{{resolve:secretsmanager:db:SecretString:pasword}}": "db has no key 'pasword' - did you mean 'password'?",
    "{{resolve:secretsmanager:plain:SecretString:password}}": "plain is not a JSON object: it has no key 'password'",
    "{{resolve:secretsmanager:bytes}}": "bytes holds bytes (SecretBinary)",
    "{{resolve:secretsmanager:NUL}}": "holds what no argument or variable can",
}


@pytest.mark.parametrize("reference", REFUSED)
def test_a_secret_that_cannot_be_had_ends_the_job_before_the_script(
    tree: Tree, service: Service, reference: str
) -> None:
    tree.hyperparameters_from({"password": reference}).program("print('the script ran')")
    run = tree.run(**service.env)
    assert run.code == 15, run.log
    assert REFUSED[reference] in str(run.failure)
    assert str(run.failure).startswith("ClientError: ")
    assert b"the script ran" not in run.stdout
    assert PASSWORD not in run.log
    assert "Traceback" not in run.log


def test_without_a_network_the_job_ends_and_says_what_it_needs(tree: Tree, service: Service) -> None:
    tree.hyperparameters_from({"password": "{{resolve:secretsmanager:db}}"}).program("")
    env = {**service.env, "AWS_ENDPOINT_URL_SECRETS_MANAGER": "http://127.0.0.1:1"}
    run = tree.run(**env)
    assert run.code == 15
    assert "secretsmanager db cannot be read: Could not connect" in str(run.failure)
    assert "an endpoint of the VPC" in str(run.failure)


def test_without_a_region_the_job_says_where_one_is_set(tree: Tree, service: Service) -> None:
    tree.hyperparameters_from({"password": "{{resolve:secretsmanager:db}}"})
    tree.program("print('started')\n")
    without = {name: value for name, value in service.env.items() if "REGION" not in name}
    run = tree.run(**without)
    assert run.code == 15
    assert run.stdout == b""
    assert "hint: set AWS_REGION" in str(run.failure)


def test_a_stop_is_heard_while_a_secret_is_asked_for(tree: Tree, service: Service) -> None:
    tree.hyperparameters_from({"password": "{{resolve:secretsmanager:slow}}"}).program("print('the script ran')")
    process = tree.start(service.env)
    eventually(lambda: bool(service.asked), "the question")
    process.terminate()
    run = tree.finish(process)
    assert run.code == 143, run.log
    assert str(run.failure).startswith("ClientError: stopped by SIGTERM before the script was started")
    assert run.stdout == b""


def test_no_secret_is_asked_for_in_the_clear(tree: Tree, service: Service) -> None:
    tree.hyperparameters_from({"password": "{{resolve:secretsmanager:db}}"}).program("")
    run = tree.run(**{**service.env, "AWS_ENDPOINT_URL_SECRETS_MANAGER": "http://secrets.invalid"})
    assert run.code == 15
    assert "the endpoint http://secrets.invalid is not encrypted" in str(run.failure)


def test_without_boto3_the_job_says_what_to_install(tree: Tree) -> None:
    tree.write("hidden/boto3.py", "raise ModuleNotFoundError(\"No module named 'boto3'\")")
    tree.hyperparameters_from({"password": "{{resolve:secretsmanager:db}}"}).program("")
    run = tree.run(PYTHONPATH=f"{tree.root / 'hidden'}:{':'.join(filter(None, sys.path))}")
    assert run.code == 15
    assert "install boto3 in the image" in str(run.failure)
