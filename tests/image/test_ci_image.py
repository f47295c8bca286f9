"""tools/ci/image.py: what it says of names, registries and scans, and when it lets an image pass."""

import contextlib
import functools
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.image import ecr
from tools.ci import sbom
from tools.ci.image import head_commit, image_tag

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
DIGEST = "sha256:" + "d" * 64
#: Prints what an image holds that is in no registry.
INVENTORY = "from tools.ci import image; print(image.take_inventory('{image}'))"


def tool(env: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "tools.ci.image", *arguments],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert ecr.PASSWORD not in done.stdout + done.stderr
    return done


def refused(env: Mapping[str, str], *arguments: str) -> str:
    """What it says in the end: what is wrong, and what to do."""
    done = tool(env, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert "\n  hint: " in done.stderr
    return done.stderr


@pytest.fixture
def env(api: str, tmp_path: Path) -> dict[str, str]:
    """Of a build in an account whose ECR has no repository."""
    return {**ecr.inherited(), **ecr.variables(api), "DOCKER_CONFIG": str(tmp_path)}


# -- the name --------------------------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, f"{ecr.ACCOUNT}.dkr.ecr.{ecr.REGION}.amazonaws.com/trainbox-candidate:0123456789ab-cpu"),
        ({"VARIANT": "gpu", "CANDIDATE_REPOSITORY": "a/b", "REGISTRY": "here:5"}, "here:5/a/b:0123456789ab-gpu"),
        ({"IMAGE_TAG": "v1.2_3", "REGISTRY": "here"}, "here/trainbox-candidate:v1.2_3"),
    ],
)
def test_the_name_is_the_registry_the_repository_the_commit_and_the_variant(
    env: dict[str, str], given: dict[str, str], name: str
) -> None:
    done = tool({**env, "CODEBUILD_RESOLVED_SOURCE_VERSION": COMMIT, **given}, "name")
    assert (done.returncode, done.stdout) == (0, f"{name}\n"), done.stderr


@pytest.mark.process
def test_the_name_of_a_checkout_with_changes_says_so(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        known = ("-c", "user.name=me", "-c", "user.email=me@localhost", "-c", "commit.gpgsign=false")
        return subprocess.run(
            ["git", *known, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "--quiet")
    (tmp_path / "code.py").write_text("1\n")
    (tmp_path / ".gitignore").write_text("built/\n")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    commit = git("rev-parse", "HEAD")

    def tag(variant: str) -> str:
        return image_tag({"VARIANT": variant}, lambda: head_commit(tmp_path))

    (tmp_path / "built").mkdir()
    (tmp_path / "built" / "ignored").touch()
    assert tag("cpu") == f"{commit[:12]}-cpu"
    (tmp_path / "code.py").write_text("2\n")
    assert tag("gpu") == f"{commit[:12]}-dirty-gpu"
    git("checkout", "--quiet", "code.py")
    assert tag("cpu") == f"{commit[:12]}-cpu"
    (tmp_path / "new.py").touch()  # it gets into the image, too
    assert tag("cpu") == f"{commit[:12]}-dirty-cpu"


@pytest.mark.process
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"CODEBUILD_RESOLVED_SOURCE_VERSION": "v3xWmQ.not-a-commit"}, "is no commit to name the image by"),
        ({"IMAGE_TAG": "latest"}, "IMAGE_TAG: found 'latest'"),
        ({"IMAGE_TAG": "a b"}, "IMAGE_TAG: found 'a b'"),
        ({"IMAGE_TAG": "a", "VARIANT": "../x"}, "VARIANT: found '../x'"),
        ({"IMAGE_TAG": "a", "CANDIDATE_REPOSITORY": "same", "ECR_REPOSITORY": "same"}, "are both 'same'"),
    ],
)
def test_a_name_that_says_nothing_is_refused(env: dict[str, str], given: dict[str, str], said: str) -> None:
    assert said in refused({**env, "REGISTRY": "here", **given}, "name")


@pytest.mark.process
def test_missing_credentials_and_regions_are_said(env: dict[str, str]) -> None:
    without = {name: value for name, value in env.items() if "KEY" not in name} | {"HOME": env["DOCKER_CONFIG"]}
    assert "no AWS credentials were found" in refused(without, "name")
    without = {name: value for name, value in env.items() if "REGION" not in name} | {"HOME": env["DOCKER_CONFIG"]}
    assert "no AWS region is set" in refused(without, "name")
    assert "IMAGE: found ''" in refused(env, "push")


@pytest.mark.process
def test_a_repository_that_is_not_there_is_said_before_anything_is_built(env: dict[str, str]) -> None:
    ecr.client(env["AWS_ENDPOINT_URL"]).create_repository(repositoryName="candidate-alone")
    for candidate, missing in (("nowhere", "nowhere"), ("candidate-alone", "nowhere-either")):
        said = refused({**env, "IMAGE": f"127.0.0.1:9/{candidate}:tag", "ECR_REPOSITORY": "nowhere-either"}, "login")
        assert f"ECR has no repository '{missing}'" in said
        assert f"aws ecr create-repository --repository-name {missing}" in said


@pytest.mark.process
@pytest.mark.parametrize(
    "given",
    [
        {"CODEBUILD_WEBHOOK_EVENT": "PULL_REQUEST_UPDATED"},
        {"CODEBUILD_SOURCE_VERSION": "pr/7"},
        {"CODEBUILD_SOURCE_VERSION": "refs/heads/feature"},
        {"CODEBUILD_WEBHOOK_EVENT": "PUSH", "CODEBUILD_WEBHOOK_HEAD_REF": "refs/heads/feature"},
    ],
    ids=str,
)
def test_a_build_of_anything_but_main_does_not_log_in(env: dict[str, str], given: dict[str, str]) -> None:
    said = refused({**env, **given, "IMAGE": "127.0.0.1:9/nowhere:tag"}, "login")
    assert "the project that may push builds main alone" in said
    allowed = {"CODEBUILD_WEBHOOK_EVENT": "PUSH", "CODEBUILD_WEBHOOK_HEAD_REF": "refs/heads/main"}
    said = refused({**env, **allowed, "IMAGE": "127.0.0.1:9/nowhere:tag"}, "login")
    assert "ECR has no repository" in said


@pytest.mark.process
def test_a_program_that_is_to_sign_and_is_not_there_is_said_before_anything_is_built(env: dict[str, str]) -> None:
    given = {"SIGN_WITH": "notation", "SIGN_KEY": "arn:x", "IMAGE": "127.0.0.1:9/nowhere:tag"}
    assert "SIGN_WITH=notation, and there is no such program here" in refused({**env, **given}, "login")


# -- the scan --------------------------------------------------------------------------------------------------------


class Scanned(NamedTuple):
    """An image that ECR has, in a repository of its own."""

    env: dict[str, str]
    address: str
    repository: str

    def found(self, status: str, **counts: int) -> None:
        ecr.find(self.address, self.repository, DIGEST, status, basic=False, **counts)
        self.begin()

    def begin(self) -> None:
        ecr.client(self.address).start_image_scan(repositoryName=self.repository, imageId={"imageDigest": DIGEST})

    def judged(self, **settings: str) -> subprocess.CompletedProcess[str]:
        return tool({**self.env, "SCAN_WAIT_SECONDS": "1", **settings}, "scan", DIGEST)


@pytest.fixture
def scanned(api: str, env: dict[str, str], request: pytest.FixtureRequest) -> Scanned:
    repository = f"scan-{abs(hash(request.node.nodeid))}-{os.getpid()}"
    client = ecr.client(api)
    client.create_repository(repositoryName=repository)
    content = json.dumps({"schemaVersion": 2, "mediaType": ecr.DOCKER_MANIFEST, "layers": []})
    client.put_image(repositoryName=repository, imageManifest=content, imageTag="tag", imageDigest=DIGEST)
    return Scanned({**env, "IMAGE": f"{ecr.ACCOUNT}.dkr.ecr.x.amazonaws.com/{repository}:tag"}, api, repository)


@pytest.mark.process
@pytest.mark.parametrize(
    ("counts", "fail_on", "passes"),
    [
        ({"HIGH": 3, "LOW": 1}, "CRITICAL", True),
        ({"HIGH": 1, "LOW": 1}, "", False),
        pytest.param({"MEDIUM": 1}, "", True, marks=pytest.mark.long),
        pytest.param({"CRITICAL": 1}, "", False, marks=pytest.mark.long),
        ({"HIGH": 3}, "HIGH", False),
        ({"CRITICAL": 1}, "MEDIUM", False),
        pytest.param({"LOW": 9}, "MEDIUM", True, marks=pytest.mark.long),
        ({}, "UNDEFINED", True),
        ({"CRITICAL": 1}, "NONE", True),
    ],
)
def test_findings_that_are_bad_enough_fail(
    scanned: Scanned, counts: dict[str, int], fail_on: str, passes: bool
) -> None:
    scanned.found("COMPLETE", **counts)
    done = scanned.judged(SCAN_FAIL_ON=fail_on)
    assert done.returncode == (0 if passes else 1), done.stderr
    if not passes:
        worst, *_ = counts
        assert f"{worst} CVE-0-{worst} expat 2.5 https://example.com/{worst}" in done.stderr
        assert f"{counts[worst]} findings of {fail_on or 'HIGH'} or worse" in done.stderr


@pytest.mark.process
def test_basic_scanning_which_sees_no_python_packages_fails_unless_that_is_allowed(scanned: Scanned) -> None:
    # A region of its own: the kind of scanning is the whole registry's.
    region = {"AWS_REGION": "eu-west-2", "AWS_DEFAULT_REGION": "eu-west-2"}
    ecr.scan_by(scanned.address, "BASIC", "eu-west-2")
    done = scanned.judged(**region)
    assert done.returncode == 1
    assert "basic scanning, which sees only the operating system's packages, not Python's" in done.stderr
    done = scanned.judged(**region, SCAN_BASIC="warn", SCAN_MISSING="warn")
    assert "SCAN_BASIC=warn lets that do" in done.stderr


@pytest.mark.process
def test_findings_of_a_basic_scan_count_too(scanned: Scanned) -> None:
    ecr.find(scanned.address, scanned.repository, DIGEST, "COMPLETE", basic=True, HIGH=1)
    scanned.begin()
    done = scanned.judged()
    assert done.returncode == 1
    assert "HIGH CVE-0-HIGH expat 2.5" in done.stderr


@pytest.mark.process
def test_a_scan_that_takes_longer_than_allowed_fails(scanned: Scanned) -> None:
    scanned.found("IN_PROGRESS")
    done = scanned.judged()
    assert done.returncode == 1
    assert "is IN_PROGRESS after 1 s" in done.stderr
    assert "SCAN_WAIT_SECONDS" in done.stderr


@pytest.mark.process
@pytest.mark.parametrize("status", [pytest.param("", marks=pytest.mark.long), "UNSUPPORTED_IMAGE", "FAILED"])
def test_an_image_that_is_not_scanned_fails_unless_that_is_allowed(scanned: Scanned, status: str) -> None:
    if status:
        scanned.found(status)
    done = scanned.judged()
    assert done.returncode == 1
    assert f"ECR has not scanned {scanned.env['IMAGE']}: {status or 'NOT FOUND'}" in done.stderr
    assert "let a filter of the registry's scanning name" in done.stderr
    done = scanned.judged(SCAN_MISSING="warn")
    assert done.returncode == 0
    assert "warning: ECR has not scanned" in done.stderr


@pytest.mark.process
def test_a_scan_that_begins_late_is_waited_for(scanned: Scanned) -> None:
    late = threading.Timer(1.5, scanned.found, ["COMPLETE"], {"CRITICAL": 1})
    late.start()
    done = scanned.judged(SCAN_WAIT_SECONDS="30")
    late.join()
    assert done.returncode == 1
    assert "1 CRITICAL" in done.stderr


@pytest.mark.process
@pytest.mark.parametrize(
    ("setting", "value"),
    [("SCAN_FAIL_ON", "BAD"), ("SCAN_MISSING", "maybe"), ("SCAN_BASIC", "no"), ("SCAN_WAIT_SECONDS", "soon")],
)
def test_settings_that_mean_nothing_are_refused(scanned: Scanned, setting: str, value: str) -> None:
    done = scanned.judged(**{setting: value})
    assert done.returncode == 1
    assert f"{setting}: found '{value}'" in done.stderr


# -- the registry ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small(engine: Any, account: ecr.Account) -> Iterator[str]:
    """An image of one byte or so, tagged for the registry; the name of a second one ends in -2."""
    names = [f"{account.registry}/small:tag", f"{account.registry}/small:tag-2"]
    for name in names:
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as tar:
            info = tarfile.TarInfo("name")
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()))
        repository, _, tag = name.rpartition(":")
        engine.import_image_from_data(content.getvalue(), repository=repository, tag=tag)
    yield names[0]
    ecr.remove_images(engine, account.registry)


@pytest.mark.representative
@pytest.mark.docker
def test_everything_in_the_image_has_a_hash_a_licence_and_a_line_in_the_notice(image: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INVENTORY.format(image=image)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    inventory = json.loads(done.stdout)
    document = sbom.bill(inventory, f"here/trainbox@{DIGEST}", {})
    python = [each for each in document["components"] if each["bom-ref"].startswith(("/opt/venv", "/usr"))]
    assert {"msgspec", "trainbox"} <= {each["name"] for each in python}
    assert [each["name"] for each in python if not each["hashes"]] == []
    installed = {each["name"]: each for each in python if "file_name=" not in each["purl"]}
    assert [name for name, each in installed.items() if not each.get("licenses")] == []
    named = set(re.findall(r"^\| ([a-z0-9-]+) \|", (ROOT / "THIRD_PARTY.md").read_text(), re.MULTILINE))
    assert set(installed) - named == {"trainbox"}
    assert {each["name"] for each in document["components"]} >= {"libc6", "cpython"}


@pytest.mark.representative
@pytest.mark.docker
@pytest.mark.registry
def test_a_tag_that_is_there_is_never_moved(engine: Any, account: ecr.Account, small: str) -> None:
    env = {**account.env, "IMAGE": small}
    assert "log in again" in refused(env, "push"), "without the token the registry says nothing"
    with contextlib.suppress(ecr.client(account.api).exceptions.RepositoryAlreadyExistsException):
        ecr.client(account.api).create_repository(repositoryName="small")
    with contextlib.suppress(ecr.client(account.api).exceptions.RepositoryAlreadyExistsException):
        ecr.client(account.api).create_repository(repositoryName="trainbox")
    assert tool(env, "login").returncode == 0
    first = tool(env, "push")
    assert first.returncode == 0, first.stderr
    assert first.stdout.strip() == ecr.manifest(account.registry, "small", "tag").headers["Docker-Content-Digest"]
    again = tool(env, "push")
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert "is there already, with these bytes" in again.stderr
    engine.tag(f"{small}-2", small.rpartition(":")[0], "tag", force=True)
    said = refused(env, "push")
    assert f"is there already, with other bytes: {first.stdout.strip()}" in said
    assert "a tag names one image for ever" in said
    assert ecr.manifest(account.registry, "small", "tag").headers["Docker-Content-Digest"] == first.stdout.strip()


@pytest.mark.docker
@pytest.mark.registry
def test_an_image_in_oci_format_is_not_taken(engine: Any, account: ecr.Account, small: str) -> None:
    """Newer builders make one; here the registry gets it from elsewhere."""
    ecr.log_in(account)
    env = {**account.env, "IMAGE": small}
    assert tool(env, "push").returncode == 0
    pushed = ecr.manifest(account.registry, "small", "tag").json()
    oci = json.loads(json.dumps(pushed).replace("vnd.docker.container.image.v1+json", "vnd.oci.image.config.v1+json"))
    oci["mediaType"] = "application/vnd.oci.image.manifest.v1+json"
    for layer in oci["layers"]:
        layer["mediaType"] = "application/vnd.oci.image.layer.v1.tar+gzip"
    ecr.put_manifest(account.registry, "small", "oci", oci).raise_for_status()
    engine.tag(small, small.rpartition(":")[0], "oci")
    said = refused({**env, "IMAGE": f"{account.registry}/small:oci"}, "push")
    assert f"is an application/vnd.oci.image.manifest.v1+json, expected {ecr.DOCKER_MANIFEST}" in said
    assert "--provenance=false" in said


#: What ECR answers, as https://docs.aws.amazon.com/AmazonECR/latest/userguide/common-errors-docker.html has it.
ANSWERS = {
    "NAME_UNKNOWN": (404, "The repository with name 'small' does not exist in the registry with id '123456789012'"),
    "DENIED": (403, "User: arn:aws:iam::123456789012:role/build is not authorized to perform: ecr:PutImage"),
    "TAG_INVALID": (400, "The image tag 'tag' already exists in the 'small' repository and cannot be overwritten"),
}


class Refusing(BaseHTTPRequestHandler):
    """A registry that refuses layers, or a manifest where that is what the code is about."""

    def __init__(self, code: str, *arguments: Any) -> None:
        self.code = code
        super().__init__(*arguments)

    def answer(self, status: int, content: object = None, **headers: str) -> None:
        body = json.dumps(content).encode() if self.command != "HEAD" else b""
        self.send_response(status)
        known = {"Content-Type": "application/json", "Docker-Distribution-Api-Version": "registry/2.0"}
        for name, value in {**known, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def refuse(self) -> None:
        status, message = ANSWERS[self.code]
        self.answer(status, {"errors": [{"code": self.code, "message": message}]})

    def do_GET(self) -> None:
        self.answer(200 if self.path == "/v2/" else 404, {})

    def do_HEAD(self) -> None:
        self.answer(200 if self.code == "TAG_INVALID" else 404)

    def do_POST(self) -> None:
        if self.code == "TAG_INVALID":
            self.answer(202, Location="/v2/small/blobs/uploads/1", Range="0-0")
        else:
            self.refuse()

    def do_PATCH(self) -> None:
        while size := int(self.rfile.readline(), 16):
            self.rfile.read(size + 2)
        self.rfile.readline()
        self.answer(202, Location="/v2/small/blobs/uploads/1", Range="0-1")

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if "/blobs/" in self.path:
            self.answer(201, Location="/v2/small/blobs/1")
        else:
            self.refuse()

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@contextlib.contextmanager
def refusing(code: str) -> Iterator[str]:
    """Such a registry; its host and port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Refusing, code)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.docker
@pytest.mark.registry
@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("NAME_UNKNOWN", "aws ecr create-repository --repository-name small"),
        ("DENIED", "the role may not push there"),
        ("TAG_INVALID", "a tag names one image for ever"),
    ],
)
def test_what_ecr_refuses_is_said_in_its_words_and_with_what_to_do(
    engine: Any, account: ecr.Account, small: str, code: str, hint: str
) -> None:
    with refusing(code) as place:
        engine.tag(small, f"{place}/small", "tag")
        try:
            said = refused({**account.env, "IMAGE": f"{place}/small:tag"}, "push")
        finally:
            ecr.remove_images(engine, place)
    assert ANSWERS[code][1] in said
    assert hint in said


@pytest.mark.docker
@pytest.mark.registry
def test_a_registry_that_is_not_there_and_an_image_that_was_not_built_are_said(
    engine: Any, account: ecr.Account, small: str
) -> None:
    assert "there is no image" in refused({**account.env, "IMAGE": f"{small}-3"}, "push")
    engine.tag(small, "127.0.0.1:9/small", "tag")
    try:
        assert "127.0.0.1:9 does not answer" in refused({**account.env, "IMAGE": "127.0.0.1:9/small:tag"}, "push")
    finally:
        ecr.remove_images(engine, "127.0.0.1:9")
