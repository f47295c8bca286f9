"""What stands in for ECR: Debian's docker-registry for the images, moto's server for the API; both on loopback.

moto knows only of images that it is told of, and Debian's registry nothing of scans: `tell` brings them together.
"""

import contextlib
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import pytest
import requests

from tests.support.containers import base_of, unavailable
from tests.support.waiting import eventually

ACCOUNT = "123456789012"
REGION = "eu-central-1"
#: What moto gives as the token.
USER, PASSWORD = "AWS", f"{ACCOUNT}-auth-token"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


@contextlib.contextmanager
def started(command: list[str], log: Path, says: str) -> Iterator[str]:
    """A server, and what it says where it listens: its log must come to match."""
    # A file, because nobody reads on: a pipe would fill up, and then the server waits.
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as server:
        try:
            found = eventually(
                lambda: re.search(says, log.read_text()),
                says,
                logs=log.read_text,
                ended=lambda: server.poll() is not None,
            )
            yield found[1]
        finally:
            server.terminate()


@contextlib.contextmanager
def registry(directory: Path) -> Iterator[str]:
    """Debian's registry, which lets in who has the token; its host and port."""
    program = shutil.which("docker-registry")
    if program is None:
        unavailable("docker-registry is not installed: tools/ci/packages")
    crypt = ctypes.CDLL("libcrypt.so.1").crypt
    crypt.restype = ctypes.c_char_p
    (directory / "htpasswd").write_bytes(f"{USER}:".encode() + crypt(PASSWORD.encode(), b"$2b$05$" + b"t" * 21 + b"u"))
    (directory / "registry.yml").write_text(
        f"""
version: 0.1
storage: {{filesystem: {{rootdirectory: {directory}/images}}}}
http: {{addr: "127.0.0.1:0", secret: none}}
auth: {{htpasswd: {{realm: ecr, path: {directory}/htpasswd}}}}
log: {{accesslog: {{disabled: true}}, level: info}}
"""
    )
    command = [program, "serve", str(directory / "registry.yml")]
    with started(command, directory / "registry.log", r"listening on (127\.0\.0\.1:\d+)") as address:
        yield address


@contextlib.contextmanager
def api_server(directory: Path) -> Iterator[str]:
    """moto's server; its address."""
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", "0"]
    with started(command, directory / "api.log", r"Running on (http://127\.0\.0\.1:\d+)") as address:
        yield address


def variables(address: str) -> dict[str, str]:
    """What makes an AWS client speak to moto."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def client(address: str, region: str = REGION) -> Any:
    """Of moto's ECR."""
    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    return boto3.client("ecr", endpoint_url=address, region_name=region, **keys)


def manifest(place: str, repository: str, reference: str) -> requests.Response:
    """What the registry has, read over HTTP."""
    return requests.get(
        f"http://{place}/v2/{repository}/manifests/{reference}",
        headers={"Accept": f"{DOCKER_MANIFEST}, application/vnd.oci.image.index.v1+json"},
        auth=(USER, PASSWORD),
        timeout=30,
    )


def put_manifest(place: str, repository: str, tag: str, content: Mapping[str, object]) -> requests.Response:
    """Put what no image is pushed for."""
    return requests.put(
        f"http://{place}/v2/{repository}/manifests/{tag}",
        data=json.dumps(content),
        headers={"Content-Type": str(content["mediaType"])},
        auth=(USER, PASSWORD),
        timeout=30,
    )


def tags(place: str, repository: str) -> list[str]:
    """The tags that were pushed; none where nothing was."""
    answer = requests.get(f"http://{place}/v2/{repository}/tags/list", auth=(USER, PASSWORD), timeout=30)
    return sorted(answer.json().get("tags") or [])


def tell(ecr: Any, repository: str, tag: str, pushed: str, digest: str) -> None:
    """Let moto's ECR know an image, and begin its scan, as a push to ECR does."""
    ecr.put_image(
        repositoryName=repository,
        imageManifest=pushed,
        imageManifestMediaType=DOCKER_MANIFEST,
        imageTag=tag,
        imageDigest=digest,
    )
    ecr.start_image_scan(repositoryName=repository, imageId={"imageDigest": digest})


def find(address: str, repository: str, digest: str, status: str, *, basic: bool = False, **counts: int) -> None:
    """What the scan of an image finds, an enhanced one or a basic one."""
    each = [(severity, number) for severity, count in counts.items() for number in range(count)]
    kind = "findings" if basic else "enhancedFindings"
    found = [_basic(*one) if basic else _enhanced(*one) for one in each]
    answer: dict[str, Any] = {
        "registryId": ACCOUNT,
        "repositoryName": repository,
        "imageId": {"imageDigest": digest},
        "imageScanStatus": {"status": status},
        "imageScanFindings": {kind: found, "findingSeverityCounts": counts},
    }
    url = f"{address}/moto-api/static/ecr/scan-finding-results"
    requests.post(url, json={"results": [answer], "region": REGION}, timeout=30).raise_for_status()


def _basic(severity: str, number: int) -> dict[str, object]:
    attributes = [{"key": "package_name", "value": "expat"}, {"key": "package_version", "value": "2.5"}]
    name, uri = f"CVE-{number}-{severity}", f"https://example.com/{severity}"
    return {"name": name, "severity": severity, "uri": uri, "attributes": attributes}


def _enhanced(severity: str, number: int) -> dict[str, object]:
    details = {
        "vulnerabilityId": f"CVE-{number}-{severity}",
        "relatedVulnerabilities": [f"GHSA-{number}-{severity}"],
        "sourceUrl": f"https://example.com/{severity}",
        "vulnerablePackages": [{"name": "expat", "version": "2.5"}],
    }
    return {
        "title": f"{details['vulnerabilityId']} - expat",
        "severity": severity,
        "packageVulnerabilityDetails": details,
    }


def scan_by(address: str, kind: str, region: str = REGION) -> None:
    """Which of its two kinds of scanning the registry has: ENHANCED or BASIC."""
    client(address, region).put_registry_scanning_configuration(scanType=kind, rules=[])


class Account(NamedTuple):
    """A stand-in for an AWS account: a registry and an API."""

    registry: str
    api: str
    #: Where docker keeps the token.
    docker: Path
    #: What images are built on.
    base: str

    @property
    def env(self) -> dict[str, str]:
        return {**inherited(), **variables(self.api), "DOCKER_CONFIG": str(self.docker)}


def log_in(account: Account) -> None:
    """As a person does."""
    command = ["docker", "login", "--username", USER, "--password-stdin", account.registry]
    subprocess.run(command, input=PASSWORD.encode(), env=account.env, capture_output=True, check=True)


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with api_server(tmp_path_factory.mktemp("api")) as address:
        scan_by(address, "ENHANCED")
        yield address


@pytest.fixture
def account(engine: Any, api: str, tmp_path: Path) -> Iterator[Account]:
    """Its registry is empty, and what is tagged for it here goes afterwards."""
    with registry(tmp_path) as place:
        yield Account(place, api, tmp_path / "docker", base_of(engine))
        remove_images(engine, place)


def remove_images(engine: Any, place: str) -> None:
    """Those of one registry."""
    for kind in ("RepoTags", "RepoDigests"):
        for name in [name for image in engine.images() for name in image[kind] or ()]:
            if name.startswith(f"{place}/"):
                engine.remove_image(name, force=True)


def inherited() -> dict[str, str]:
    """Of this process' variables, what every build environment has too."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_HOST") if name in os.environ}
