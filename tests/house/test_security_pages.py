"""The pages and files about security: their policies are valid and narrow, and what they name is there."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
POLICIES: list[dict[str, Any]] = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)]


def anchors(text: str) -> set[str]:
    """As the usual renderers make them of titles."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^a-z0-9_ -]", "", title.lower()).replace(" ", "-") for title in titles}


def listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def test_a_job_may_write_its_checkpoints_and_its_models_and_nothing_else() -> None:
    role, bucket = POLICIES
    writes = {
        resource
        for each in role["Statement"]
        for resource in listed(each["Resource"])
        if {"s3:PutObject", "s3:DeleteObject"} & set(listed(each["Action"]))
    }
    assert writes == {"arn:aws:s3:::training/checkpoints/churn/*", "arn:aws:s3:::training/models/churn/*"}
    assert not [action for each in role["Statement"] for action in listed(each["Action"]) if "*" in action]
    (statement,) = bucket["Statement"]
    assert statement["Effect"] == "Deny"
    assert statement["Resource"] in writes
    assert statement["Condition"] == {
        "ArnNotEquals": {"aws:PrincipalArn": "arn:aws:iam::123456789012:role/churn-training"}
    }


@pytest.mark.parametrize(
    "page", ["SECURITY.md", "README.md", "docs/security.md", "docs/build-and-push.md", "THIRD_PARTY.md"]
)
def test_every_link_into_a_page_meets_a_title(page: str) -> None:
    text = (ROOT / page).read_text()
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", text):
        there = (ROOT / page).parent / target if target else ROOT / page
        assert anchor in anchors(there.read_text()), f"{page}: {target}#{anchor}"


def test_the_policy_says_how_to_report_what_is_fixed_and_who_is_trusted() -> None:
    titles = re.findall(r"^## (.*)$", (ROOT / "SECURITY.md").read_text(), re.MULTILINE)
    assert titles == ["Report a vulnerability", "Supported versions", "What is trusted"]


def test_what_has_a_code_owner_is_there() -> None:
    lines = (ROOT / ".github/CODEOWNERS").read_text().splitlines()
    paths = [line.split()[0] for line in lines if line and not line.startswith("#")]
    assert [path for path in paths if path != "*" and not (ROOT / path.lstrip("/")).exists()] == []
    assert {"/tools/ci/", "/locks/", "/Dockerfile", "/buildspec.yml"} <= set(paths)


def test_updates_are_asked_for_of_every_lock_and_of_the_base_image_wherever_it_stands() -> None:
    found = json.loads((ROOT / ".github/renovate.json").read_text())
    (locks,) = (pattern.strip("/") for pattern in found["pip_requirements"]["managerFilePatterns"])
    assert [path.name for path in ROOT.glob("locks/*") if not re.search(locks, f"locks/{path.name}")] == []
    (base,) = found["customManagers"]
    (match,) = (text.replace("(?<", "(?P<") for text in base["matchStrings"])
    named = {}
    for path in ("Dockerfile", "buildspec.yml", "tools/ci/buildspec-test.yml"):
        assert any(re.search(pattern[1:-1], path) for pattern in base["managerFilePatterns"]), path
        images = [each.groupdict() for each in re.finditer(match, (ROOT / path).read_text())]
        assert len(images) == 1, path
        named[path] = images[0]["currentValue"], images[0]["currentDigest"]
    assert len(set(named.values())) == 1, named
    assert set(found["enabledManagers"]) == {"custom.regex", "pip_requirements"}
    assert not list((ROOT / ".github").glob("workflows/*")), "then github-actions, too"
