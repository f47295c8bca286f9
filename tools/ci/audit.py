"""Look for known vulnerabilities of an image's Python packages: `python -m tools.ci.audit INVENTORY`.

By pip-audit, with --strict: without it pip-audit skips what it cannot look up, finds nothing, and ends with 0. Its
answer is checked once more: every package of the inventory was looked up. It rates no finding, so each one counts, but
those of tools/ci/allowed-findings.toml. AUDIT_MISSING=warn lets an image pass where it cannot look.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.ci.findings import Finding, end_on, severities_to_fail_on
from tools.ci.messages import emit, fail

#: Ours, which no index has.
OURS = frozenset({"trainbox"})


def packages(inventory: Mapping[str, Any]) -> dict[str, set[str]]:
    """The versions of each package that indexes know: those installed, and the wheels that lie in the base image.

    A build of PyTorch's own index has a local version, 2.13.0+cpu, which no database has: its vulnerabilities are those
    of 2.13.0.
    """
    found: dict[str, set[str]] = {}
    for each in (*inventory["distributions"], *inventory["wheels"]):
        name = normalise(each["name"])
        if name not in OURS:
            found.setdefault(name, set()).add(each["version"].partition("+")[0])
    return found


def normalise(name: str) -> str:
    """As https://packaging.python.org/en/latest/specifications/name-normalization/ has it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def lists(wanted: Mapping[str, set[str]]) -> list[str]:
    """Lists of requirements that hold all versions, each package once in each: pip-audit refuses two."""
    most = max(map(len, wanted.values()), default=0)
    every = [
        sorted(f"{name}=={sorted(versions)[number]}" for name, versions in wanted.items() if number < len(versions))
        for number in range(most)
    ]
    return ["\n".join(each) + "\n" for each in every]


def run(program: str | None, requirements: str) -> list[Mapping[str, Any]]:
    """What pip-audit says of each package of a list.

    Raises:
        LookupError: It could not look, as its own words say.
    """
    if program is None:
        raise LookupError("pip-audit is not installed")
    with tempfile.TemporaryDirectory() as directory:
        listed, answer = Path(directory, "requirements.txt"), Path(directory, "answer.json")
        listed.write_text(requirements)
        options = ["--strict", "--disable-pip", "--no-deps", "--progress-spinner", "off", "--format", "json"]
        done = subprocess.run(
            [program, *options, "--requirement", str(listed), "--output", str(answer)],
            capture_output=True,
            text=True,
            check=False,
        )
        try:
            content = json.loads(answer.read_text())["dependencies"]
        except (OSError, ValueError, KeyError, TypeError):
            raise LookupError((done.stderr or done.stdout).strip()[-1000:] or f"exit code {done.returncode}") from None
    # A list names each package once.
    asked = {line.partition("==")[0] for line in requirements.split()}
    looked = {normalise(each["name"]) for each in content if "skip_reason" not in each}
    if asked - looked:
        raise LookupError(f"it skipped {', '.join(sorted(asked - looked)[:10])}")
    found = any(each["vulns"] for each in content)
    if done.returncode != int(found):
        raise LookupError(f"exit code {done.returncode}: {done.stderr.strip()[-1000:]}")
    return list(content)


def findings(answers: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """What was found."""
    return [
        Finding((vuln["id"], *vuln.get("aliases", ())), "", each["name"], each["version"])
        for each in answers
        for vuln in each["vulns"]
    ]


def main() -> None:
    """Judge one inventory."""
    env, inventory = os.environ, json.loads(Path(sys.argv[1]).read_text())
    missing = env.get("AUDIT_MISSING") or "fail"
    if missing not in {"fail", "warn"}:
        fail(f"AUDIT_MISSING: found {missing!r}", "one of fail, warn")
    installed = shutil.which("pip-audit", path=str(Path(sys.executable).parent))
    program = installed or shutil.which("pip-audit")
    wanted = packages(inventory)
    try:
        answers = [each for requirements in lists(wanted) for each in run(program, requirements)]
    except LookupError as error:
        text = f"no vulnerabilities of Python packages were looked up: {error}"
        if missing == "fail":
            fail(text, "tools/ci/install release installs pip-audit, which needs a network; or set AUDIT_MISSING=warn")
        emit(f"warning: {text}; AUDIT_MISSING=warn lets it pass")
        return
    found = findings(answers)
    emit(f"pip-audit looked up {len(wanted)} packages and found {len(found)} vulnerabilities")
    end_on("the Python packages of the image", found, severities_to_fail_on("CRITICAL"))


if __name__ == "__main__":
    main()
