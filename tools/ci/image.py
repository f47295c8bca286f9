"""Name, log in for, push and judge the image that tools/ci builds: `image.py name | login | push | scan DIGEST`.

    name    print REGISTRY/ECR_REPOSITORY:IMAGE_TAG. REGISTRY is by default the account's ECR, IMAGE_TAG the commit's
            first 12 digits and VARIANT
    login   look that the repository is there, and log docker in with a token of ECR
    push    push IMAGE and print its digest, once the registry has the very image that was built, as one Docker manifest
    scan    wait at most SCAN_WAIT_SECONDS (600) for ECR's findings, and fail if any is of SCAN_FAIL_ON (CRITICAL) or
            worse; NONE asks for no findings. SCAN_MISSING=warn lets an image pass that ECR does not scan

The names in capitals are variables of the environment. Exit code 1 and a line of what to do where something is wrong.
"""

import argparse
import base64
import contextlib
import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import boto3
import botocore.client
import botocore.exceptions
import docker
import requests

REPOSITORY = Path(__file__).parents[2]
#: What SageMaker takes for training and hosting alike; an OCI index, which newer builders make, hosting rejects:
#: https://docs.docker.com/reference/api/registry/latest/ and
#: https://github.com/aws/amazon-sagemaker-feedback/issues/180
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_ANY_MANIFEST = (
    DOCKER_MANIFEST,
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
)
#: As ECR orders them, the worst first.
SEVERITIES = ("CRITICAL", "HIGH", "MEDIUM", "LOW", "INFORMATIONAL", "UNDEFINED", "UNTRIAGED")
_SCANNED = frozenset({"COMPLETE", "ACTIVE"})
_SCANNING = frozenset({"PENDING", "IN_PROGRESS"})
#: A scan that was asked for by the push is known after some seconds.
_SCAN_APPEARS_SECONDS = 60.0
_POLL_SECONDS = 2.0
_LISTED_FINDINGS = 10
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_COMMIT = re.compile(r"[0-9a-f]{12,64}")
_UNAUTHORIZED, _NOT_FOUND = 401, 404
_DOCS = "docs/build-and-push.md has the commands and the permissions"
#: The error codes of the registry API, as the engine words them, and what to do:
#: https://distribution.github.io/distribution/spec/api/#errors-2
_HINTS = {
    "name unknown": "make the repository: aws ecr create-repository --repository-name NAME",
    "denied": f"the role may not push there; {_DOCS}",
    "unauthorized": "log in again: a token of ECR is good for 12 hours, and for its own registry",
    "no basic auth credentials": "log in first: tools/ci/image.py login",
    "tag invalid": "a tag names one image for ever: build another commit, or set IMAGE_TAG",
}


class Name(NamedTuple):
    """The full name of an image."""

    registry: str
    repository: str
    tag: str

    def __str__(self) -> str:
        return f"{self.registry}/{self.repository}:{self.tag}"

    @property
    def owner(self) -> dict[str, str]:
        """How ECR's API names the registry, which may be another account's; nothing where it is no ECR."""
        account = re.match(r"([0-9]{12})\.dkr\.ecr\.", self.registry)
        return {"registryId": account[1]} if account else {}


class Manifest(NamedTuple):
    """What a registry has under a tag."""

    digest: str
    media_type: str
    config: str

    def is_of(self, image_id: str) -> bool:
        """Whether it is this image. An engine names an image by its configuration, a newer one by its manifest."""
        return image_id in {self.config, self.digest}


def fail(what: str, hint: str) -> NoReturn:
    """End with one message."""
    raise SystemExit(f"image: {what}\n  hint: {hint}")


def say(text: str) -> None:
    """One line of the log; stdout is for what is asked for."""
    print(f"image: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def aws_explained(what: str) -> Iterator[None]:
    """Say what AWS refused, in its own words: they name the role and the permission."""
    try:
        yield
    except botocore.exceptions.NoCredentialsError:
        fail(f"{what}: no AWS credentials were found", "give the project a service role, or log in: aws sso login")
    except botocore.exceptions.NoRegionError:
        fail(f"{what}: no AWS region is set", "set AWS_DEFAULT_REGION")
    except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as error:
        fail(f"{what}: {error}", _DOCS)


# -- the name --------------------------------------------------------------------------------------------------------


def image_tag(env: Mapping[str, str], head: Callable[[], str]) -> str:
    """IMAGE_TAG, or the commit and the variant: never a name that moves from image to image."""
    tag = env.get("IMAGE_TAG") or ""
    if not tag:
        commit = env.get("CODEBUILD_RESOLVED_SOURCE_VERSION") or head()
        if not _COMMIT.fullmatch(commit):
            fail(f"the source {commit!r} is no commit to name the image by", "set IMAGE_TAG")
        tag = f"{commit[:12]}-{env.get('VARIANT') or 'cpu'}"
    if tag == "latest" or not _TAG.fullmatch(tag):
        fail(f"IMAGE_TAG: found {tag!r}", "letters, digits, '_', '.', '-', and not 'latest', which says nothing")
    return tag


def head_commit() -> str:
    """The commit that is checked out."""
    answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return answer.stdout.strip()


def make_name(env: Mapping[str, str]) -> Name:
    """The name of the image to be built."""
    repository = env.get("ECR_REPOSITORY") or "trainbox"
    registry = env.get("REGISTRY") or read_token()[0]
    return Name(registry, repository, image_tag(env, head_commit))


def given_name(env: Mapping[str, str]) -> Name:
    """IMAGE, taken apart."""
    registry, _, rest = env.get("IMAGE", "").partition("/")
    repository, _, tag = rest.rpartition(":")
    if not repository:
        fail(f"IMAGE: found {env.get('IMAGE', '')!r}, expected REGISTRY/REPOSITORY:TAG", "source tools/ci/names first")
    return Name(registry, repository, tag)


# -- the registry ----------------------------------------------------------------------------------------------------


def read_token() -> tuple[str, str]:
    """The registry of this account and region, and a password for the user AWS."""
    with aws_explained("cannot ask ECR for a token"):
        (token,) = boto3.client("ecr").get_authorization_token()["authorizationData"]
    password = base64.b64decode(token["authorizationToken"]).decode().partition(":")[2]
    return token["proxyEndpoint"].removeprefix("https://"), password


def log_in(name: Name) -> None:
    """Fail now rather than after a long build if there is no repository; then let docker keep the token."""
    with aws_explained(f"cannot look at the repository {name.repository}"):
        ecr = boto3.client("ecr")
        try:
            ecr.describe_repositories(repositoryNames=[name.repository], **name.owner)
        except ecr.exceptions.RepositoryNotFoundException:
            create = f"aws ecr create-repository --repository-name {name.repository}"
            fail(f"ECR has no repository {name.repository!r}", f"{create} --image-tag-mutability IMMUTABLE; {_DOCS}")
    command = ["docker", "login", "--username", "AWS", "--password-stdin", name.registry]
    answer = subprocess.run(command, input=read_token()[1], capture_output=True, text=True, check=False)
    if answer.returncode:
        fail(f"cannot log in to {name.registry}: {answer.stderr.strip()}", "is it the registry of this account?")
    say(f"logged in to {name.registry}")


def find_manifest(name: Name) -> Manifest | None:
    """What the registry itself has under this tag; None if nothing.

    Asks with basic authentication, as ECR and Docker's own registry take it.
    """
    # As the engine has it: https is spared on loopback alone.
    scheme = "http" if re.match(r"(localhost|127\.[0-9.]+)(:|$)", name.registry) else "https"
    url = f"{scheme}://{name.registry}/v2/{name.repository}/manifests/{name.tag}"
    known = docker.auth.load_config().resolve_authconfig(name.registry) or {}
    auth = (known["username"], known["password"]) if "password" in known else None
    try:
        answer = requests.get(url, headers={"Accept": ",".join(_ANY_MANIFEST)}, auth=auth, timeout=60)
    except requests.RequestException as error:
        fail(f"{name.registry} does not answer: {error}", "is this the name of a registry?")
    if answer.status_code == _NOT_FOUND:
        return None
    if not answer.ok:
        hint = _HINTS["unauthorized"] if answer.status_code == _UNAUTHORIZED else _HINTS["denied"]
        fail(f"{name.registry} does not say what it has as {name}: {answer.status_code} {answer.text.strip()}", hint)
    config = answer.json().get("config", {}).get("digest", "")
    digest = "sha256:" + hashlib.sha256(answer.content).hexdigest()
    return Manifest(digest, answer.headers["Content-Type"].partition(";")[0], config)


def push(name: Name) -> str:
    """Push what was built, unless the registry has it, and look that it has it.

    Returns:
        The digest by which SageMaker gets these very bytes.
    """
    with contextlib.closing(docker.APIClient(version="auto", **docker.utils.kwargs_from_env())) as engine:
        try:
            image_id = engine.inspect_image(str(name))["Id"]
        except docker.errors.ImageNotFound:
            fail(f"there is no image {name} here", "tools/ci/build makes it")
        found = find_manifest(name)
        if found and not found.is_of(image_id):
            fail(f"{name} is there already, with other bytes: {found.digest}", _HINTS["tag invalid"])
        if found:
            say(f"{name} is there already, with these bytes")
        else:
            _push_layers(engine, name)
            found = find_manifest(name)
    if found is None or not found.is_of(image_id):
        fail(f"{name} in the registry is not the image {image_id} that was tested", "is something else pushing there?")
    if found.media_type != DOCKER_MANIFEST:
        flags = "--provenance=false --sbom=false --output type=docker"
        fail(f"{name} is an {found.media_type}, expected {DOCKER_MANIFEST}", f"build it with {flags}")
    return found.digest


def _push_layers(engine: docker.APIClient, name: Name) -> None:
    """Push, saying how each layer ends."""
    for event in engine.push(f"{name.registry}/{name.repository}", tag=name.tag, stream=True, decode=True):
        if "error" in event:
            error = str(event["error"])
            hint = next((hint for code, hint in _HINTS.items() if error.startswith(code)), _DOCS)
            fail(f"{name} was not pushed: {error}", hint.replace("NAME", name.repository))
        if event.get("status") in {"Pushed", "Layer already exists"}:
            say(f"{event['id']}: {event['status']}")


# -- the scan --------------------------------------------------------------------------------------------------------


def severities_to_fail_on(worst_allowed: str) -> tuple[str, ...]:
    """SCAN_FAIL_ON and all that is worse; none for NONE."""
    if worst_allowed == "NONE":
        return ()
    if worst_allowed not in SEVERITIES:
        fail(f"SCAN_FAIL_ON: found {worst_allowed!r}", f"one of {', '.join(SEVERITIES)}, NONE")
    return SEVERITIES[: SEVERITIES.index(worst_allowed) + 1]


def wait_for_scan(
    ecr: botocore.client.BaseClient, name: Name, digest: str, seconds: float
) -> tuple[str, Mapping[str, Any]]:
    """The status of the scan, once it has ended or the time is over, and its findings.

    Returns:
        A status of ECR, or "NOT FOUND" where no scan was begun.
    """
    began = time.monotonic()
    while True:
        limit = seconds
        try:
            answer = ecr.describe_image_scan_findings(
                repositoryName=name.repository, imageId={"imageDigest": digest}, maxResults=1000, **name.owner
            )
            status, findings = answer["imageScanStatus"]["status"], answer.get("imageScanFindings", {})
        except (ecr.exceptions.ScanNotFoundException, ecr.exceptions.ImageNotFoundException):
            status, findings, limit = "NOT FOUND", {}, min(seconds, _SCAN_APPEARS_SECONDS)
        left = limit - (time.monotonic() - began)
        if status not in _SCANNING | {"NOT FOUND"} or left <= 0:
            return status, findings
        time.sleep(min(_POLL_SECONDS, left))


def scan(name: Name, digest: str, env: Mapping[str, str]) -> None:
    """Fail on findings that are bad enough."""
    failing = severities_to_fail_on(env.get("SCAN_FAIL_ON") or "CRITICAL")
    missing = env.get("SCAN_MISSING") or "fail"
    if missing not in {"fail", "warn"}:
        fail(f"SCAN_MISSING: found {missing!r}", "one of fail, warn")
    if not failing:
        say("SCAN_FAIL_ON=NONE: no findings are asked for")
        return
    try:
        seconds = float(env.get("SCAN_WAIT_SECONDS") or 600)
    except ValueError:
        fail(f"SCAN_WAIT_SECONDS: found {env['SCAN_WAIT_SECONDS']!r}", "a number of seconds")
    with aws_explained(f"cannot read the findings of {name}"):
        status, findings = wait_for_scan(boto3.client("ecr"), name, digest, seconds)
    if status in _SCANNING:
        fail(f"the scan of {name} is {status} after {seconds:g} s", "run it again, or set SCAN_WAIT_SECONDS")
    if status not in _SCANNED:
        text = f"ECR has not scanned {name}: {status}"
        enable = "aws ecr put-image-scanning-configuration --image-scanning-configuration scanOnPush=true"
        if missing == "fail":
            fail(text, f"{enable} --repository-name {name.repository}; or set SCAN_MISSING=warn")
        say(f"warning: {text}; SCAN_MISSING=warn lets it pass")
        return
    counts = findings.get("findingSeverityCounts", {})
    text = ", ".join(f"{counts[each]} {each}" for each in SEVERITIES if counts.get(each)) or "none"
    say(f"findings: {text}")
    if any(counts.get(each) for each in failing):
        for line in _worst(findings, failing)[:_LISTED_FINDINGS]:
            say(line)
        fail(f"{name} has findings of {failing[-1]} or worse: {text}", "update what has them, or set SCAN_FAIL_ON")


def _worst(findings: Mapping[str, Any], failing: tuple[str, ...]) -> list[str]:
    """A line for each finding that counts, of a basic or of an enhanced scan."""
    every = [*findings.get("findings", ()), *findings.get("enhancedFindings", ())]
    return [
        f"  {each['severity']} {each.get('name') or each.get('title')} {each.get('uri', '')}".rstrip()
        for each in sorted(every, key=lambda each: SEVERITIES.index(each["severity"]))
        if each["severity"] in failing
    ]


def main() -> None:
    """Do what one verb says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("name", "login", "push"):
        verbs.add_parser(verb)
    verbs.add_parser("scan").add_argument("digest")
    args = parser.parse_args()
    env = os.environ
    if args.verb == "name":
        print(make_name(env))
    elif args.verb == "login":
        log_in(given_name(env))
    elif args.verb == "push":
        print(push(given_name(env)))
    else:
        scan(given_name(env), args.digest, env)


if __name__ == "__main__":
    main()
