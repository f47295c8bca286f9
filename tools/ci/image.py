"""Name, push, judge and release the image that tools/ci builds: `python -m tools.ci.image VERB`.

In this order:

    name            print REGISTRY/CANDIDATE_REPOSITORY:IMAGE_TAG. REGISTRY is by default the account's ECR, IMAGE_TAG
                    the commit's first 12 digits and VARIANT; `-dirty` between them says that files were changed since
    login           look that both repositories are there, and that this build may release, and log docker in
    content         print a digest of IMAGE's layers and configuration, which another build of the commit has too
    tested          fail unless IMAGE's content is one of those in TESTED_CONTENT
    inventory       print what IMAGE holds, as JSON
    push            push IMAGE, the candidate, and print its digest, once the registry has the very image that was
                    built, as one Docker manifest
    scan DIGEST     wait at most SCAN_WAIT_SECONDS (600) for ECR's findings about the candidate, and fail if any is of
                    SCAN_FAIL_ON (HIGH) or worse
    release DIGEST  copy the candidate by its digest to ECR_REPOSITORY, attach its SBOM and provenance there, have them
                    signed (SIGN_WITH), and only then give it its tag; print what there is now, as JSON

The names in capitals are variables of the environment. Exit code 1 and a line of what to do where something is wrong.
"""

import argparse
import base64
import contextlib
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import botocore.exceptions
import docker

from tools.ci import release, sign
from tools.ci.messages import emit, fail
from tools.ci.registry import DOCKER_MANIFEST, DOCS, LOG_IN, Manifest, Name, Registry
from tools.ci.scan import scan

REPOSITORY = Path(__file__).parents[2]
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_COMMIT = re.compile(r"([0-9a-f]{12})[0-9a-f]{0,52}(-dirty)?")
_VARIANTS = ("cpu", "gpu")
#: What a release may be made of; who may start one, IAM decides: docs/build-and-push.md.
_RELEASED = frozenset({"main", "refs/heads/main"})
#: What a container is started with; the other keys of a configuration are of the build.
_CONFIGURED = (
    "Cmd",
    "Entrypoint",
    "Env",
    "ExposedPorts",
    "Healthcheck",
    "Labels",
    "Shell",
    "StopSignal",
    "User",
    "Volumes",
)
#: Of the commit, or of the build where the source has no history.
_CREATED = "org.opencontainers.image.created"
#: The error codes of the registry API, as the engine words them, and what to do:
#: https://distribution.github.io/distribution/spec/api/#errors-2
_HINTS = {
    "name unknown": "make the repository: aws ecr create-repository --repository-name NAME",
    "denied": f"the role may not push there; {DOCS}",
    "unauthorized": LOG_IN,
    "no basic auth credentials": "log in first: . tools/ci/login",
    "tag invalid": "a tag names one image for ever: build another commit, or set IMAGE_TAG",
}


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
        fail(f"{what}: {error}", DOCS)


@contextlib.contextmanager
def _engine() -> Iterator[docker.APIClient]:
    with contextlib.closing(docker.APIClient(version="auto", **docker.utils.kwargs_from_env())) as engine:
        yield engine


def _inspect(engine: docker.APIClient, name: Name) -> Mapping[str, Any]:
    try:
        return dict(engine.inspect_image(str(name)))
    except docker.errors.ImageNotFound:
        fail(f"there is no image {name} here", "tools/ci/build makes it")


# -- the name --------------------------------------------------------------------------------------------------------


def image_tag(env: Mapping[str, str], head: Callable[[], str]) -> str:
    """IMAGE_TAG, or the commit and the variant: never a name that moves from image to image."""
    variant = env.get("VARIANT") or "cpu"
    if variant not in _VARIANTS:
        fail(f"VARIANT: found {variant!r}", f"one of {', '.join(_VARIANTS)}")
    tag = env.get("IMAGE_TAG") or ""
    if not tag:
        source = env.get("CODEBUILD_RESOLVED_SOURCE_VERSION") or head()
        commit = _COMMIT.fullmatch(source)
        if not commit:
            fail(f"the source {source!r} is no commit to name the image by", "set IMAGE_TAG")
        tag = f"{commit[1]}{commit[2] or ''}-{variant}"
    if tag == "latest" or not _TAG.fullmatch(tag):
        fail(f"IMAGE_TAG: found {tag!r}", "letters, digits, '_', '.', '-', and not 'latest', which says nothing")
    return tag


def head_commit(repository: Path = REPOSITORY) -> str:
    """The commit that is checked out; `-dirty` behind it where files were changed or added since."""
    commit, changes = (
        subprocess.run(["git", *asked], cwd=repository, capture_output=True, text=True, check=False).stdout.strip()
        for asked in (["rev-parse", "HEAD"], ["status", "--porcelain"])
    )
    return f"{commit}-dirty" if commit and changes else commit


def make_name(env: Mapping[str, str]) -> Name:
    """The name of the candidate to be built."""
    repository = env.get("CANDIDATE_REPOSITORY") or "trainbox-candidate"
    if repository == release.repository(env):
        fail(
            f"CANDIDATE_REPOSITORY and ECR_REPOSITORY are both {repository!r}",
            "candidates need their own repository",
        )
    registry = env.get("REGISTRY") or read_token()[0]
    return Name(registry, repository, image_tag(env, head_commit))


def given_name(env: Mapping[str, str]) -> Name:
    """IMAGE, taken apart."""
    registry, _, rest = env.get("IMAGE", "").partition("/")
    repository, _, tag = rest.rpartition(":")
    if not repository:
        fail(f"IMAGE: found {env.get('IMAGE', '')!r}, expected REGISTRY/REPOSITORY:TAG", ". tools/ci/names sets it")
    return Name(registry, repository, tag)


# -- before the push -------------------------------------------------------------------------------------------------


def refuse_other_sources(env: Mapping[str, str]) -> None:
    """Fail unless this is main: that finds a project set up by mistake, and stops nobody who changes this file."""
    event, source = env.get("CODEBUILD_WEBHOOK_EVENT", ""), env.get("CODEBUILD_SOURCE_VERSION", "")
    branch = env.get("CODEBUILD_WEBHOOK_HEAD_REF") or (source if source.startswith("refs/") else "refs/heads/main")
    if event.startswith("PULL_REQUEST") or source.startswith("pr/") or branch not in _RELEASED:
        what = event if event.startswith("PULL_REQUEST") else source or branch
        fail(
            f"this build is of {what}",
            "the project that may push builds main alone; tools/ci/buildspec-test.yml the rest",
        )


def read_token() -> tuple[str, str]:
    """The registry of this account and region, and a password for the user AWS."""
    with aws_explained("cannot ask ECR for a token"):
        (token,) = boto3.client("ecr").get_authorization_token()["authorizationData"]
    password = base64.b64decode(token["authorizationToken"]).decode().partition(":")[2]
    return token["proxyEndpoint"].removeprefix("https://"), password


def log_in(name: Name, env: Mapping[str, str]) -> None:
    """Fail now rather than after a long build if something is missing; then let docker keep the token."""
    refuse_other_sources(env)
    sign.look(env)
    for repository in (name.repository, release.repository(env)):
        with aws_explained(f"cannot look at the repository {repository}"):
            ecr = boto3.client("ecr")
            try:
                ecr.describe_repositories(repositoryNames=[repository], **name.owner)
            except ecr.exceptions.RepositoryNotFoundException:
                create = f"aws ecr create-repository --repository-name {repository}"
                fail(f"ECR has no repository {repository!r}", f"{create} --image-tag-mutability IMMUTABLE; {DOCS}")
    command = ["docker", "login", "--username", "AWS", "--password-stdin", name.registry]
    answer = subprocess.run(command, input=read_token()[1], capture_output=True, text=True, check=False)
    if answer.returncode:
        fail(f"cannot log in to {name.registry}: {answer.stderr.strip()}", "is it the registry of this account?")
    emit(f"logged in to {name.registry}")


def content_digest(inspected: Mapping[str, Any]) -> str:
    """Of what containers of an image are made of: its id is also of the engine that built it, and of the time."""
    config = {key: inspected["Config"].get(key) for key in _CONFIGURED}
    labels = {key: value for key, value in (config["Labels"] or {}).items() if key != _CREATED}
    whole = [inspected["Os"], inspected["Architecture"], inspected["RootFS"]["Layers"], {**config, "Labels": labels}]
    return "sha256:" + hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def refuse_untested(content: str, env: Mapping[str, str]) -> None:
    """Fail unless the tests, which ran in a project of their own, were of this content."""
    tested = (env.get("TESTED_CONTENT") or "").replace(",", " ").split()
    if tested == ["unknown"]:
        emit(f"warning: TESTED_CONTENT=unknown: nothing says that {content} was tested")
        return
    if content not in tested:
        what = f"TESTED_CONTENT has {' '.join(tested)}" if tested else "TESTED_CONTENT is not set"
        fail(
            f"the image's content is {content}, and {what}",
            "give the IMAGE_CONTENT that the tests of this commit exported",
        )
    emit(f"the tests were of this content: {content}")


def take_inventory(name: object) -> str:
    """What the image holds, by its own Python, which has no network, no rights and nothing to write to."""
    confined = ["--network", "none", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    command = [
        "docker",
        "run",
        "--rm",
        "--interactive",
        *confined,
        "--user",
        "65534",
        "--entrypoint",
        "python",
        str(name),
    ]
    script = Path(__file__).with_name("inventory.py").read_text()
    done = subprocess.run([*command, "-I", "-"], input=script, capture_output=True, text=True, check=False)
    if done.returncode:
        fail(f"cannot look into {name}: {done.stderr.strip()[-1000:]}", "does it have a Python?")
    return done.stdout


# -- the push --------------------------------------------------------------------------------------------------------


def push(name: Name) -> str:
    """Push what was built, unless the registry has it, and look that it has it.

    Returns:
        The digest by which SageMaker gets these very bytes.
    """
    registry = Registry(name.registry)
    with _engine() as engine:
        image_id = _inspect(engine, name)["Id"]
        found = registry.find(name.repository, name.tag)
        if found and not found.is_of(image_id):
            fail(f"{name} is there already, with other bytes: {found.digest}", _HINTS["tag invalid"])
        if found:
            emit(f"{name} is there already, with these bytes")
        else:
            _push_layers(engine, name)
            found = registry.find(name.repository, name.tag)
    if found is None or not found.is_of(image_id):
        fail(f"{name} in the registry is not the image {image_id} that was built", "is something else pushing there?")
    _refuse_other_formats(name, found)
    return found.digest


def _refuse_other_formats(name: Name, found: Manifest) -> None:
    if found.media_type != DOCKER_MANIFEST:
        flags = "--provenance=false --sbom=false --output type=docker"
        fail(f"{name} is an {found.media_type}, expected {DOCKER_MANIFEST}", f"build it with {flags}")


def _push_layers(engine: docker.APIClient, name: Name) -> None:
    """Push, saying how each layer ends."""
    for event in engine.push(f"{name.registry}/{name.repository}", tag=name.tag, stream=True, decode=True):
        if "error" in event:
            error = str(event["error"])
            hint = next((hint for code, hint in _HINTS.items() if error.startswith(code)), DOCS)
            fail(f"{name} was not pushed: {error}", hint.replace("NAME", name.repository))
        if event.get("status") in {"Pushed", "Layer already exists"}:
            emit(f"{event['id']}: {event['status']}")


def main() -> None:
    """Do what one verb says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("name", "login", "content", "tested", "inventory", "push"):
        verbs.add_parser(verb)
    for verb in ("scan", "release"):
        verbs.add_parser(verb).add_argument("digest")
    args = parser.parse_args()
    env = os.environ
    if args.verb == "name":
        print(make_name(env))
    elif args.verb == "login":
        log_in(given_name(env), env)
    elif args.verb in {"content", "tested"}:
        with _engine() as engine:
            content = content_digest(_inspect(engine, given_name(env)))
        if args.verb == "content":
            print(content)
        else:
            refuse_untested(content, env)
    elif args.verb == "inventory":
        print(take_inventory(given_name(env)))
    elif args.verb == "push":
        print(push(given_name(env)))
    elif args.verb == "scan":
        name = given_name(env)
        with aws_explained(f"cannot read the findings of {name}"):
            scan(lambda: boto3.client("ecr"), name, args.digest, env)
    else:
        print(json.dumps(release.release(given_name(env), args.digest, env, REPOSITORY)))


if __name__ == "__main__":
    main()
