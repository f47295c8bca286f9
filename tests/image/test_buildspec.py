"""The two buildspecs, executed as CodeBuild would with a registry in place of ECR, and read as text."""

import fnmatch
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import boto3
import pytest
from botocore import xform_name

from tests.ci import fake_audit
from tests.image import ecr
from tests.image.codebuild import PHASES, Build, batch_order, read_buildspec, run_build

ROOT = Path(__file__).parents[2]
CI = ROOT / "tools" / "ci"
TEST_SPEC = "tools/ci/buildspec-test.yml"
PAGE = (ROOT / "docs" / "build-and-push.md").read_text()
#: Neither history nor what git ignores, as in a clean checkout; what takes long to make anew is put there below.
LEFT_OUT = (".git/", *(ROOT / ".gitignore").read_text().split())
#: Wheels of the smallest image.
WHEELS = ("msgspec", "hatchling", "packaging", "pathspec", "pip", "pluggy", "tomlkit", "trove_classifiers")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
#: The fewest tests; documented as TRAINBOX_CI_TESTS and TRAINBOX_CI_IMAGE_TESTS.
TESTS = "tests/system/test_memory.py"
IMAGE_TESTS = "tests/image/test_image.py::test_without_a_job_it_says_what_is_missing"
PLANTED = '''"""A test that was planted to fail."""

import pytest


@pytest.mark.{mark}
def test_that_fails() -> None:
    assert __doc__ == "something else"
'''
executed = [pytest.mark.docker, pytest.mark.registry]


def ignored(directory: str, names: list[str]) -> set[str]:
    """What git ignores; all patterns of .gitignore name directories."""
    left_out = {name for pattern in LEFT_OUT for name in fnmatch.filter(names, pattern.rstrip("/"))}
    return {name for name in left_out if Path(directory, name).is_dir()}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of this working tree, with the environment that is here already."""
    copy = tmp_path / "src"
    shutil.copytree(ROOT, copy, ignore=ignored, symlinks=True)
    # It is newer than what it is made from; of the other one no test is selected.
    for name, stamp in (
        (".venv", ".pip"),
        (".venv", ".dev"),
        (".venv", ".release"),
        (".venv-incumbent", ".ready"),
        (".venv-hosting-3.0", ".ready"),
        (".venv-hosting-1.7", ".ready"),
    ):
        (copy / name).mkdir(exist_ok=True)
        (copy / name / stamp).touch()
    for path in (Path(sys.prefix) / name for name in ("bin", "lib", "pyvenv.cfg")):
        (copy / ".venv" / path.name).symlink_to(path)
    if (ROOT / ".mypy_cache").exists():
        shutil.copytree(ROOT / ".mypy_cache", copy / ".mypy_cache")
    for name in WHEELS:
        for wheel in ROOT.glob(f"wheelhouse/{name}-*.whl"):
            (copy / "wheelhouse").mkdir(exist_ok=True)
            shutil.copy2(wheel, copy / "wheelhouse")
    return copy


@pytest.fixture
def linted(checkout: Path) -> Path:
    """A checkout whose lint says that it was asked, no more: it takes longer than all else, and one build does it."""
    makefile = checkout / "Makefile"
    made, lints = re.subn(r"(?m)^(lint:.*\n)(?:\t.*\n)+", r"\1\t@echo linted\n", makefile.read_text())
    assert lints == 1
    makefile.write_text(made)
    return checkout


def releases(account: ecr.Account) -> str:
    return f"trainbox-{account.registry.rpartition(':')[2]}"


def candidates(account: ecr.Account) -> str:
    return f"candidate-{account.registry.rpartition(':')[2]}"


def own(checkout: Path, account: ecr.Account) -> dict[str, str]:
    """Variables of a build of the smallest image, with the fewest tests."""
    return {
        "REGISTRY": account.registry,
        # moto's server is for all tests.
        "ECR_REPOSITORY": releases(account),
        "CANDIDATE_REPOSITORY": candidates(account),
        "BASE_IMAGE": account.base,
        "EXTRAS": "",
        "CODEBUILD_RESOLVED_SOURCE_VERSION": COMMIT,
        # This checkout's package, not the one that .venv was made for.
        "PYTHONPATH": str(checkout / "container"),
        "TRAINBOX_CI_TESTS": TESTS,
        "TRAINBOX_CI_IMAGE_TESTS": IMAGE_TESTS,
    }


def run_the_tests(checkout: Path, account: ecr.Account, **given: str) -> Build:
    """A build of the project for tests, which has no rights: no key is among its variables."""
    done = run_build(checkout, {**own(checkout, account), **given}, image=ecr.inherited(), buildspec=TEST_SPEC)
    print(done.log)
    return done


def run_the_release(checkout: Path, account: ecr.Account, **given: str) -> Build:
    """A build of the project for releases."""
    variables = {**own(checkout, account), **given}
    for name in ("ECR_REPOSITORY", "CANDIDATE_REPOSITORY"):
        ecr.client(account.api).create_repository(repositoryName=variables[name])
    done = run_build(checkout, variables, image=with_audit(account, checkout))
    print(done.log)
    assert ecr.PASSWORD not in done.log
    return done


def with_audit(account: ecr.Account, checkout: Path) -> dict[str, str]:
    """The variables of an account, and a pip-audit that finds nothing: no database of vulnerabilities is here."""
    programs = checkout.with_name("programs")
    fake_audit.install(programs, {})
    return {**account.env, "PATH": f"{programs}:{account.env['PATH']}"}


@pytest.fixture
def scanned(account: ecr.Account) -> Iterator[None]:
    """ECR knows what is pushed, and scans it: here a thread looks what the registry has."""
    repository, over = candidates(account), threading.Event()

    def tell() -> None:
        known: set[str] = set()
        while not over.wait(0.2):
            for tag in set(ecr.tags(account.registry, repository)) - known:
                found = ecr.manifest(account.registry, repository, tag)
                digest = found.headers["Docker-Content-Digest"]
                ecr.find(account.api, repository, digest, "COMPLETE", MEDIUM=1)
                ecr.tell(ecr.client(account.api), repository, tag, found.text, digest)
                known.add(tag)

    thread = threading.Thread(target=tell)
    thread.start()
    yield
    over.set()
    thread.join()


def shell(directory: Path, env: Mapping[str, str], *commands: str) -> subprocess.CompletedProcess[str]:
    """What a person types; ends with the first command that fails."""
    argv = ["bash", "-c", "set -e\n" + "\n".join(commands)]
    return subprocess.run(argv, cwd=directory, env=env, capture_output=True, text=True, check=False, timeout=300)


# -- executed --------------------------------------------------------------------------------------------------------


class TestExecuted:
    pytestmark = executed

    @pytest.mark.usefixtures("scanned")
    def test_what_was_tested_is_built_anew_judged_and_released_by_its_digest(
        self, checkout: Path, account: ecr.Account, tmp_path: Path
    ) -> None:
        test = run_the_tests(checkout, account)
        assert test.succeeded, test.log
        assert list(test.exported) == ["IMAGE_CONTENT"]
        assert ecr.tags(account.registry, candidates(account)) == []
        suites = [ET.parse(path).getroot().find("testsuite") for path in test.reports["tests"]]
        assert all(suite is not None and int(suite.attrib["tests"]) for suite in suites)
        assert len(suites) == 2
        (coverage,) = test.reports["coverage"]
        assert float(ET.parse(coverage).getroot().attrib["line-rate"]) > 0
        done = run_the_release(checkout, account, TESTED_CONTENT=test.exported["IMAGE_CONTENT"])
        assert done.succeeded, done.log
        assert tuple(done.phases) == PHASES
        uri = self.all_of_it_is_there(done, account)
        self.a_job_runs_from(uri, account, tmp_path)
        self.publishing_again_pushes_nothing_and_a_bad_finding_leaves_no_artifact(checkout, account, test, done)

    def all_of_it_is_there(self, done: Build, account: ecr.Account) -> str:
        """Told in three places, and all say what the registry has."""
        repository, tag = releases(account), f"{COMMIT[:12]}-cpu"
        pushed = ecr.manifest(account.registry, repository, tag)
        assert pushed.headers["Content-Type"] == pushed.json()["mediaType"] == ecr.DOCKER_MANIFEST
        digest = pushed.headers["Docker-Content-Digest"]
        uri = f"{account.registry}/{repository}@{digest}"
        assert done.exported == {"IMAGE_TAG": tag, "IMAGE_DIGEST": digest, "IMAGE_URI": uri}
        assert sorted(done.artifacts) == ["image-cpu.json", "image-cpu.provenance.json", "image-cpu.sbom.cdx.json"]
        told = json.loads(done.artifacts["image-cpu.json"].read_text())
        assert told.items() >= {"image_uri": uri, "image_digest": digest, "variant": "cpu", "signed": False}.items()
        # The candidate is this very image; beside the release are its documents, as this registry keeps them.
        assert ecr.manifest(account.registry, candidates(account), tag).content == pushed.content
        beside = digest.replace(":", "-")
        assert ecr.tags(account.registry, repository) == sorted([tag, beside])
        kinds = [
            each["artifactType"] for each in ecr.manifest(account.registry, repository, beside).json()["manifests"]
        ]
        assert sorted(kinds) == ["application/vnd.cyclonedx+json", "application/vnd.in-toto+json"]
        sbom = json.loads(done.artifacts["image-cpu.sbom.cdx.json"].read_text())
        found = {each["name"] for each in sbom["components"]}
        assert {"msgspec", "trainbox", "libc6", "cpython"} <= found
        made = re.search(r"build: made \S+: (sha256:[0-9a-f]{64})", done.log)
        assert made is not None
        assert made[1] == pushed.json()["config"]["digest"], "what was built is what was pushed"
        assert "image: the tests were of this content: sha256:" in done.log
        assert "image: findings of ECR: 1 MEDIUM" in done.log
        assert "no layers are kept: " in done.log
        return uri

    def a_job_runs_from(self, uri: str, account: ecr.Account, tmp_path: Path) -> None:
        for name in ("input", "code", "model"):
            (tmp_path / "ml" / name).mkdir(parents=True)
        (tmp_path / "ml/code/train.py").write_text("import trainbox\ntrainbox.save('model', 'trained')\n")
        mount = f"--volume {tmp_path}/ml:/opt/ml --env SAGEMAKER_PROGRAM=train.py"
        run = f"docker run --rm --network none {mount} {uri} train"
        ecr.log_in(account)
        # Not here any more, so that it comes from the registry.
        here = f"docker images --quiet --no-trunc {account.registry}/{candidates(account)}"
        answer = shell(tmp_path, account.env, f"docker rmi --force $({here})", f"docker pull {uri}", run)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        assert f"Digest: {uri.partition('@')[2]}" in answer.stdout
        assert (tmp_path / "ml/model/model").read_text() == "trained"

    def publishing_again_pushes_nothing_and_a_bad_finding_leaves_no_artifact(
        self, checkout: Path, account: ecr.Account, test: Build, done: Build
    ) -> None:
        uri, tag = done.exported["IMAGE_URI"], done.exported["IMAGE_TAG"]
        image = f"{account.registry}/{candidates(account)}:{tag}"
        env = {**with_audit(account, checkout), "IMAGE": image, "IMAGE_TAG": tag, "VARIANT": "cpu"}
        env |= {"TESTED_CONTENT": test.exported["IMAGE_CONTENT"], "ECR_REPOSITORY": releases(account)}
        publish = (". tools/ci/publish", "echo $IMAGE_URI")
        again = shell(checkout, env, f"docker tag {uri} {image}", *publish)
        assert (again.returncode, again.stdout) == (0, f"{uri}\n"), again.stderr
        assert "is there already, with these bytes" in again.stderr
        untested = {**env, "TESTED_CONTENT": "sha256:" + "0" * 64}
        for given, said in [
            ({**env, "SCAN_FAIL_ON": "MEDIUM"}, f"{image}: 1 findings of MEDIUM or worse"),
            ({**untested, "ECR_REPOSITORY": f"{releases(account)}-b"}, "and TESTED_CONTENT has sha256:0000"),
        ]:
            refused = shell(checkout, given, *publish)
            assert refused.returncode == 1
            assert refused.stdout == ""
            assert said in refused.stderr
            assert not (checkout / "reports/image-cpu.json").exists()

    @pytest.mark.long
    @pytest.mark.usefixtures("scanned")
    def test_a_candidate_that_is_rejected_has_no_tag_in_the_release_repository(
        self, checkout: Path, account: ecr.Account
    ) -> None:
        done = run_the_release(checkout, account, TESTED_CONTENT="unknown", SCAN_FAIL_ON="MEDIUM")
        assert not done.succeeded
        assert "1 findings of MEDIUM or worse" in done.log
        assert ecr.tags(account.registry, candidates(account)) == [f"{COMMIT[:12]}-cpu"]
        assert ecr.tags(account.registry, releases(account)) == []
        assert done.artifacts == {}
        assert "IMAGE_URI" not in done.exported

    @pytest.mark.parametrize(
        ("mark", "where", "ended"),
        [
            ("timeout(30)", "TRAINBOX_CI_TESTS", {"install": True, "pre_build": False}),
            ("docker", "TRAINBOX_CI_IMAGE_TESTS", {"install": True, "pre_build": True, "build": False}),
        ],
        ids=["before the image", "of the image"],
    )
    @pytest.mark.long
    def test_a_failing_test_ends_with_no_content_to_release(
        self, linted: Path, account: ecr.Account, mark: str, where: str, ended: dict[str, bool]
    ) -> None:
        planted = "tests/image/test_planted.py"
        (linted / planted).write_text(PLANTED.format(mark=mark))
        done = run_the_tests(linted, account, **{where: planted})
        assert not done.succeeded
        assert "linted" in done.log
        assert done.phases == ended
        assert "test_that_fails" in done.log
        assert done.exported == {}
        # The report says which, even so.
        assert any("test_that_fails" in path.read_text() for path in done.reports["tests"])

    @pytest.mark.long
    def test_the_phases_run_by_hand_against_any_registry(self, linted: Path, account: ecr.Account) -> None:
        (block,) = (each for each in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL) if "tools/ci/check\n" in each)
        commands = [line.removeprefix("$ ").replace("127.0.0.1:5000", account.registry) for line in block.splitlines()]
        login = f"echo {ecr.PASSWORD} | docker login --username {ecr.USER} --password-stdin {account.registry}"
        env = {**account.env, **own(linted, account), "VARIANT": "gpu"}
        answer = shell(linted, env, login, *commands)
        print(answer.stdout, answer.stderr)
        assert answer.returncode == 0, answer.stderr
        assert re.search(r"^trainbox \d", answer.stdout, re.MULTILINE)
        assert "SCAN_FAIL_ON=NONE: no findings of ECR are asked for" in answer.stderr
        assert "AUDIT_MISSING=warn lets it pass" in answer.stderr
        assert f"{COMMIT[:12]}-gpu" in ecr.tags(account.registry, env["ECR_REPOSITORY"])


# -- read as text ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    return read_buildspec(ROOT)


@pytest.fixture(scope="module")
def spec_of_tests() -> dict[str, Any]:
    return read_buildspec(ROOT, TEST_SPEC)


def commands_of(spec: Mapping[str, Any]) -> list[str]:
    return [command for phase in spec["phases"] for command in spec["phases"][phase]["commands"]]


def scripts() -> list[Path]:
    """Every shell script of tools and CI, those that are sourced too."""
    files = [path for path in (*ROOT.glob("tools/**/*"), *ROOT.glob(".ci/*")) if path.is_file()]
    marks = re.compile(r"#!\S*[/ ](ba|)sh\b|# shellcheck shell=")
    return [path for path in files if marks.match(path.read_bytes()[:40].decode(errors="replace"))]


def test_tests_come_before_the_content_and_a_release_runs_none(
    spec: dict[str, Any], spec_of_tests: dict[str, Any]
) -> None:
    assert list(spec["phases"]) == list(PHASES)

    def names(commands: list[str]) -> list[str]:
        return [re.sub(r"^(\. )?tools/ci/", "", command) for command in commands]

    assert names(commands_of(spec)) == ["install release", "names", "login", "build", "publish"]
    *first, last = names(commands_of(spec_of_tests))
    assert first == ["install", "check", "names", "build", "check-image"]
    assert last == "export IMAGE_CONTENT=$(.venv/bin/python -m tools.ci.image content)"
    assert all((CI / name.split()[0]).is_file() for name in (*first, *names(commands_of(spec))))
    check = (CI / "check").read_text()
    assert check.index("make lint") < check.index("-m pytest")
    pushes = [path.name for path in CI.iterdir() if path.is_file() and re.search(r"\bpush\b\)", path.read_text())]
    assert pushes == ["publish"], "nothing else asks for a push"


def test_the_batch_makes_both_variants_the_gpu_last_and_a_single_build_one(
    spec: dict[str, Any], spec_of_tests: dict[str, Any]
) -> None:
    for each in (spec, spec_of_tests):
        builds = list(batch_order(each))
        assert [one["identifier"] for one in builds] == ["cpu", "gpu"]
        assert [one["env"]["variables"] for one in builds] == [{"VARIANT": "cpu"}, {"VARIANT": "gpu"}]
        assert all(one["env"]["privileged-mode"] is True for one in builds), "docker needs it"
        assert builds[1]["depend-on"] == ["cpu"]
        assert each["env"]["variables"]["VARIANT"] == "cpu"


def test_both_projects_build_the_same(spec: dict[str, Any], spec_of_tests: dict[str, Any]) -> None:
    first, second = (each["env"]["variables"] for each in (spec, spec_of_tests))
    assert {name: first[name] for name in ("EXTRAS", "BASE_IMAGE")} == {
        name: second[name] for name in ("EXTRAS", "BASE_IMAGE")
    }


def test_what_a_build_leaves_is_exported_reported_and_kept(spec: dict[str, Any], spec_of_tests: dict[str, Any]) -> None:
    assert spec["env"]["exported-variables"] == ["IMAGE_URI", "IMAGE_DIGEST", "IMAGE_TAG"]
    assert {each["file-format"] for each in spec_of_tests["reports"].values()} == {"JUNITXML", "COBERTURAXML"}
    assert spec["artifacts"]["files"] == ["image-*.json"]
    variables = [*spec["env"]["variables"].values(), *spec_of_tests["env"]["variables"].values()]
    assert all(isinstance(value, str) for value in variables), "CodeBuild takes text alone"


def test_nothing_is_latest_or_deprecated_and_no_secret_is_an_argument(
    spec: dict[str, Any], spec_of_tests: dict[str, Any]
) -> None:
    text = "".join(path.read_text() for path in (ROOT / "buildspec.yml", ROOT / TEST_SPEC, *scripts()))
    assert ":latest" not in text
    assert "get-login" not in text
    assert not re.search(r"--password[= ]|-p \$", text)
    assert "--password-stdin" in (CI / "image.py").read_text()
    assert not re.search(r"PASSWORD|SECRET|TOKEN", json.dumps([spec, spec_of_tests]))


def test_every_variable_is_set_documented_or_codebuilds_own(
    spec: dict[str, Any], spec_of_tests: dict[str, Any]
) -> None:
    documented = set(re.findall(r"^\| `([A-Z_]+)` \|", PAGE, re.MULTILINE))
    exported = {*spec["env"]["exported-variables"], *spec_of_tests["env"]["exported-variables"]}
    # The last four are nobody's to set.
    known = documented | exported | {"IMAGE", "CI", "DOCKER_CONFIG", "LOGIN_DIRECTORY", "PYTHON"}
    commands = [*commands_of(spec), *commands_of(spec_of_tests)]
    used = {name for command in commands for name in re.findall(r"\$\{?([A-Z_]+)", command)}
    for path in (path for path in CI.iterdir() if path.is_file()):
        text = path.read_text()
        used |= set(re.findall(r"\$\{?([A-Z_]{2,})\b", text)) | set(re.findall(r"env\.get\(\"([A-Z_]+)\"", text))
        used |= set(re.findall(r"_choice\(env, \"([A-Z_]+)\"", text))
    assert {name for name in used - known if not name.startswith(("CODEBUILD_", "AWS_"))} == set()
    of_the_build = {"BASE_IMAGE", "PIP_CERT"}
    assert documented - of_the_build <= used
    assert {*spec["env"]["variables"], *spec_of_tests["env"]["variables"]} <= known
    assert all(f"${{{name}:-" in "".join(path.read_text() for path in scripts()) for name in of_the_build)


@pytest.mark.process
def test_every_command_and_script_is_valid_shell(spec: dict[str, Any], spec_of_tests: dict[str, Any]) -> None:
    for command in (*commands_of(spec), *commands_of(spec_of_tests)):
        subprocess.run(["bash", "-n", "-c", command], check=True)
    found = scripts()
    assert {
        CI / name for name in ("packages", "install", "check", "variant", "names", "login", "build", "check-image")
    } <= set(found)
    assert CI / "publish" in found
    shellcheck = Path(sys.executable).with_name("shellcheck")
    answer = subprocess.run([shellcheck, "--severity=warning", *found], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout


def parameters(operation: Any, options: list[str]) -> dict[str, Any]:
    """What the AWS CLI makes of options: https://docs.aws.amazon.com/cli/latest/userguide/cli-usage-parameters.html."""
    members = {xform_name(name, "-"): (name, shape) for name, shape in operation.input_shape.members.items()}
    given: dict[str, Any] = {}
    for option, values in by_option(options):
        text = (ROOT / values[0][7:]).read_text() if values[0].startswith("file://") else values[0]
        if option == "--cli-input-json":
            return dict(json.loads(text))
        name, shape = members[option.removeprefix("--")]
        parsed: Any = text
        if shape.type_name in {"structure", "list"}:
            parsed = json.loads(text) if text != values[0] else [shorthand(value) for value in values]
        given[name] = parsed
    return given


def by_option(options: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Each option with its values."""
    starts = [number for number, text in enumerate(options) if text.startswith("--")]
    for begin, end in zip(starts, [*starts[1:], len(options)], strict=True):
        yield options[begin], options[begin + 1 : end]


def shorthand(text: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in text.split(","))


@pytest.mark.process
def test_the_aws_commands_of_the_page_make_what_a_build_needs(api: str) -> None:
    lines = re.findall(r"^\$ aws (.*)$", PAGE, re.MULTILINE)
    # A region that no other test uses.
    place = {"endpoint_url": api, "region_name": "eu-west-3", "aws_access_key_id": "testing"}
    clients = {
        name: boto3.client(name, aws_secret_access_key="testing", **place) for name in ("ecr", "iam", "codebuild")
    }
    for service, verb, *options in (line.split() for line in lines):
        client = clients[service]
        operation = client.meta.service_model.operation_model(client.meta.method_to_api_mapping[verb.replace("-", "_")])
        getattr(client, verb.replace("-", "_"))(**parameters(operation, options))
    repositories = clients["ecr"].describe_repositories()["repositories"]
    assert {each["repositoryName"]: each["imageTagMutability"] for each in repositories} == {
        "trainbox": "IMMUTABLE",
        "trainbox-candidate": "IMMUTABLE",
    }
    scanning = clients["ecr"].get_registry_scanning_configuration()["scanningConfiguration"]
    assert scanning["scanType"] == "ENHANCED"
    projects = clients["codebuild"].batch_get_projects(names=["trainbox-test", "trainbox-release"])["projects"]
    assert {each["name"] for each in projects if each["environment"]["privilegedMode"]} == {
        "trainbox-test",
        "trainbox-release",
    }
    assert len(lines) == 12
    for role in ("trainbox-test", "trainbox-release"):
        trust = clients["iam"].get_role(RoleName=role)["Role"]["AssumeRolePolicyDocument"]
        assert "aws:SourceArn" in trust["Statement"][0]["Condition"]["StringEquals"]
        policy = clients["iam"].get_role_policy(RoleName=role, PolicyName="build")["PolicyDocument"]
        allowed = [action for each in policy["Statement"] for action in each["Action"]]
        assert ("ecr:DescribeImageScanFindings" in allowed) == (role == "trainbox-release")
