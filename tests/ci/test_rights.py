"""The rights of the two projects of CodeBuild (tools/ci/aws): tests may do nothing, a release no more than it must."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
AWS = ROOT / "tools" / "ci" / "aws"
ACCOUNT = "123456789012"
PROJECTS = ("test", "release")
#: The only actions on all resources: AWS defines no resource for them, and none of them writes.
OF_NO_RESOURCE = {
    "ecr:GetAuthorizationToken",
    "ecr:GetRegistryScanningConfiguration",
    "inspector2:ListCoverage",
    "inspector2:ListFindings",
}
#: The only resources with a wildcard: the streams of a project's own log, the builds of its own artifacts.
WITH_WILDCARDS = {
    *(f"arn:aws:logs:eu-central-1:{ACCOUNT}:log-group:/aws/codebuild/trainbox-{name}:*" for name in PROJECTS),
    "arn:aws:s3:::your-bucket/trainbox-release/*",
}
REPOSITORIES = {f"arn:aws:ecr:eu-central-1:{ACCOUNT}:repository/{name}" for name in ("trainbox", "trainbox-candidate")}


def read(name: str) -> Any:
    return json.loads((AWS / f"{name}.json").read_text())


def listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def rights(name: str) -> Iterator[tuple[str, str]]:
    """Each action with each resource that a policy allows."""
    for statement in read(name)["Statement"]:
        assert statement["Effect"] == "Allow"
        assert not set(statement) & {"NotAction", "NotResource"}
        for action in listed(statement["Action"]):
            for resource in listed(statement["Resource"]):
                yield action, resource


@pytest.mark.parametrize("name", ["test-policy", "release-policy", "signing-policy"])
def test_no_action_is_a_wildcard_and_no_resource_but_those_named_here(name: str) -> None:
    for action, resource in rights(name):
        assert "*" not in action
        assert "?" not in action + resource
        if resource == "*":
            assert action in OF_NO_RESOURCE
        elif "*" in resource:
            assert resource in WITH_WILDCARDS


def test_the_project_for_tests_may_write_its_log_and_its_reports_and_nothing_else() -> None:
    assert {action.partition(":")[0] for action, _ in rights("test-policy")} == {"logs", "codebuild"}
    assert all("trainbox-test" in resource for _, resource in rights("test-policy"))


def test_the_project_for_releases_writes_to_exactly_two_repositories_and_deletes_nothing() -> None:
    given = list(rights("release-policy"))
    assert {resource for action, resource in given if action.startswith("ecr:") and resource != "*"} == REPOSITORIES
    assert {action.partition(":")[0] for action, _ in given} == {"ecr", "inspector2", "logs", "s3"}
    assert not [
        action for action, _ in given if "Delete" in action or "Policy" in action or action.startswith("s3:Get")
    ]


@pytest.mark.parametrize("project", PROJECTS)
def test_only_this_project_of_this_account_may_take_the_role(project: str) -> None:
    (statement,) = read(f"{project}-trust")["Statement"]
    assert statement["Principal"] == {"Service": "codebuild.amazonaws.com"}
    assert statement["Condition"] == {
        "StringEquals": {
            "aws:SourceAccount": ACCOUNT,
            "aws:SourceArn": f"arn:aws:codebuild:eu-central-1:{ACCOUNT}:project/{read(f'{project}-project')['name']}",
        }
    }


def test_the_projects_share_neither_a_role_nor_a_cache() -> None:
    test, release = (read(f"{name}-project") for name in PROJECTS)
    assert test["serviceRole"] != release["serviceRole"]
    assert test["cache"] == release["cache"] == {"type": "NO_CACHE"}
    assert test["artifacts"] == {"type": "NO_ARTIFACTS"}
    assert release["sourceVersion"] == "refs/heads/main"
    specs = [yaml.safe_load((ROOT / each["source"]["buildspec"]).read_text()) for each in (test, release)]
    assert all("cache" not in spec and "CACHE_REPOSITORY" not in spec["env"]["variables"] for spec in specs)
    commands = [[command for phase in spec["phases"].values() for command in phase["commands"]] for spec in specs]
    assert not [command for command in commands[0] if "login" in command or "publish" in command]
    assert not [command for command in commands[1] if "check" in command], "no test runs with the rights of a release"
    assert "tools/ci/install release" in commands[1]
