"""From candidate to release: by digest, with SBOM, provenance and signature beside it, and the tag last."""

import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.ci import fake_registry
from tests.ci.fake_registry import Store

pytestmark = pytest.mark.process
ROOT = Path(__file__).parents[2]
CYCLONEDX, IN_TOTO = "application/vnd.cyclonedx+json", "application/vnd.in-toto+json"
NOTARY = "application/vnd.cncf.notary.signature"
LOCK = f"numpy==2.4.6 --hash=sha256:{'a' * 64}\n"
LABELS = {
    "org.opencontainers.image.revision": "0123456789abcdef0123456789abcdef01234567",
    "org.opencontainers.image.base.name": "python:3.12-slim-bookworm",
    "org.opencontainers.image.base.digest": "sha256:" + "b" * 64,
    "trainbox.variant": "cpu",
    "trainbox.extras": "xgboost",
    "trainbox.lock": "locks/image-cpu-py312.txt",
    "trainbox.lock.digest": "sha256:" + hashlib.sha256(LOCK.encode()).hexdigest(),
}
#: Signs as notation does: puts an artifact of its kind, which refers to what it was asked to sign.
NOTATION = """#!{python}
import hashlib, json, sys, urllib.request
open({log!r}, "a").write(json.dumps(sys.argv[1:]) + "\\n")
if {idle}: sys.exit()
place, _, digest = sys.argv[-1].partition("@")
registry, _, repository = place.partition("/")
old = urllib.request.urlopen(f"http://{{registry}}/v2/{{repository}}/manifests/{{digest}}").read()
empty = "sha256:" + hashlib.sha256(b"{{}}").hexdigest()
content = json.dumps({{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
  "artifactType": "application/vnd.cncf.notary.signature", "layers": [],
  "config": {{"digest": empty, "size": 2, "mediaType": "application/vnd.oci.empty.v1+json"}},
  "subject": {{"digest": digest, "size": len(old), "mediaType": "x"}}}}).encode()
url = f"http://{{registry}}/v2/{{repository}}/manifests/sha256:" + hashlib.sha256(content).hexdigest()
kind = {{"Content-Type": "application/vnd.oci.image.manifest.v1+json"}}
urllib.request.urlopen(urllib.request.Request(url, content, kind, method="PUT"))
"""


class World(NamedTuple):
    """A checkout of the tools, and a registry with a candidate."""

    store: Store
    place: str
    checkout: Path
    digest: str

    def release(self, digest: str = "", **env: str) -> "subprocess.CompletedProcess[str]":
        image = f"{self.place}/trainbox-candidate:one-cpu"
        known = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.checkout),
            "IMAGE": image,
            "PYTHONPATH": str(self.checkout),
        }
        command = [sys.executable, "-m", "tools.ci.image", "release", digest or self.digest]
        done = subprocess.run(
            command, cwd=self.checkout, env={**known, **env}, capture_output=True, text=True, check=False, timeout=300
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def released(self, **env: str) -> dict[str, Any]:
        done = self.release(**env)
        assert done.returncode == 0, done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    def kinds(self) -> list[str]:
        return sorted(str(each["artifactType"]) for each in self.store.referring("trainbox", self.digest))


@pytest.fixture(params=[{"mounts": True}, {}, {"has_referrers": False}], ids=["mounts", "copies", "no referrers API"])
def any_world(request: pytest.FixtureRequest, inventory: dict[str, Any]) -> Iterator[World]:
    yield from a_world(Store(**request.param), inventory, request.getfixturevalue("tmp_path"))


@pytest.fixture
def world(inventory: dict[str, Any], tmp_path: Path) -> Iterator[World]:
    yield from a_world(Store(), inventory, tmp_path)


def a_world(store: Store, inventory: dict[str, Any], directory: Path) -> Iterator[World]:
    for name in ("tools/ci", "reports", "locks"):
        (directory / name).mkdir(parents=True)
    for path in (ROOT / "tools" / "ci").glob("*.*"):
        (directory / "tools" / "ci" / path.name).write_bytes(path.read_bytes())
    (directory / "reports" / "inventory-cpu.json").write_text(json.dumps(inventory))
    (directory / "locks/image-cpu-py312.txt").write_text(LOCK)
    digest = store.add_image("trainbox-candidate", "one-cpu", Labels=LABELS)
    with fake_registry.serving(store) as place:
        yield World(store, place, directory, digest)


def program(directory: Path, name: str, *, idle: bool = False) -> tuple[dict[str, str], Path]:
    """The variables with which such a program is found, and where it writes down how it was called."""
    path, log = directory / "bin" / name, directory / f"{name}.log"
    path.parent.mkdir()
    path.write_text(NOTATION.format(python=sys.executable, log=str(log), idle=idle))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {"PATH": f"{path.parent}:{os.environ['PATH']}", "SIGN_WITH": name, "SIGN_KEY": "arn:key"}, log


def test_a_release_is_the_candidate_byte_for_byte_with_its_documents_beside_it(any_world: World) -> None:
    world, store = any_world, any_world.store
    told = world.released()
    assert told["image_uri"] == f"{world.place}/trainbox@{world.digest}"
    assert store.tags["trainbox"]["one-cpu"] == world.digest
    assert store.manifests["trainbox"][world.digest] == store.manifests["trainbox-candidate"][world.digest]
    assert world.kinds() == sorted([CYCLONEDX, IN_TOTO]), "beside the image, whose manifest is no index"
    kept = set(store.tags["trainbox"]) - {"one-cpu"}
    assert kept == (set() if store.has_referrers else {world.digest.replace(":", "-")})
    # The tag is the last thing that is put: what has one has everything.
    (last,) = [path for path in store.changes if path.endswith("/manifests/one-cpu")]
    assert last == store.changes[-1] == "PUT /v2/trainbox/manifests/one-cpu"
    sbom = store.document("trainbox", told["sbom"])
    assert sbom["metadata"]["component"]["version"] == world.digest
    assert json.loads((world.checkout / "reports/image-cpu.sbom.cdx.json").read_text()) == sbom
    (numpy,) = (each for each in sbom["components"] if each["name"] == "numpy")
    assert numpy["hashes"] == [{"alg": "SHA-256", "content": "a" * 64}], "of the lock that the labels name"


def test_a_release_done_again_changes_nothing(any_world: World) -> None:
    told = any_world.released()
    before = list(any_world.store.changes)
    assert any_world.released() == told
    assert {path for path in any_world.store.changes[len(before) :] if "/uploads/" in path} == set()
    assert any_world.kinds() == sorted([CYCLONEDX, IN_TOTO])


def test_a_tag_that_names_another_image_is_left_as_it_is(world: World) -> None:
    other = world.store.add_image("trainbox", "one-cpu")
    done = world.release()
    assert done.returncode == 1
    assert f"is there already, with other bytes: {other}" in done.stderr
    assert world.store.tags["trainbox"] == {"one-cpu": other}
    assert world.store.changes == []


def test_a_registry_that_gives_other_bytes_for_a_digest_ends_it(world: World) -> None:
    kind, content = world.store.manifests["trainbox-candidate"][world.digest]
    world.store.manifests["trainbox-candidate"][world.digest] = kind, content + b" "
    done = world.release()
    assert done.returncode == 1
    assert "gives other bytes" in done.stderr
    assert world.store.tags.get("trainbox", {}) == {}


def test_a_registry_that_sends_the_token_elsewhere_does_not_get_it_there(world: World) -> None:
    with fake_registry.serving(Store()) as elsewhere:
        world.store.uploads_at = f"http://{elsewhere}"
        done = world.release()
    assert done.returncode == 1
    assert f"sends us to http://{elsewhere}/" in done.stderr
    assert world.store.tags.get("trainbox", {}) == {}


def test_an_image_of_another_lock_than_that_of_the_checkout_is_not_released(world: World) -> None:
    (world.checkout / "locks/image-cpu-py312.txt").write_text("numpy==2.4.7\n")
    done = world.release()
    assert done.returncode == 1
    assert "was made from another locks/image-cpu-py312.txt than this" in done.stderr
    assert world.store.tags["trainbox"] == {}


def test_the_provenance_names_source_base_locks_and_builder(world: World) -> None:
    told = world.released(
        CODEBUILD_BUILD_ARN="arn:aws:codebuild:eu-central-1:123456789012:build/trainbox-release:7a",
        CODEBUILD_SOURCE_REPO_URL="https://github.com/you/trainbox.git",
        CODEBUILD_START_TIME="1790000000000",
    )
    statement = world.store.document("trainbox", told["provenance"])
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    (subject,) = statement["subject"]
    assert subject["digest"] == {"sha256": world.digest.removeprefix("sha256:")}
    definition, details = statement["predicate"]["buildDefinition"], statement["predicate"]["runDetails"]
    digests = {each["name"]: each["digest"] for each in definition["resolvedDependencies"]}
    assert digests["source"] == {"gitCommit": LABELS["org.opencontainers.image.revision"]}
    assert digests["base image"] == {"sha256": "b" * 64}
    assert digests["locks/image-cpu-py312.txt"] == {"sha256": hashlib.sha256(LOCK.encode()).hexdigest()}
    assert details["builder"]["id"] == "arn:aws:codebuild:eu-central-1:123456789012:project/trainbox-release"
    assert details["metadata"]["startedOn"] == "2026-09-21T14:13:20Z"


def test_an_image_that_is_not_signed_says_so(world: World) -> None:
    done = world.release()
    assert json.loads(done.stdout)["signed"] is False
    assert "warning: not signed: SIGN_WITH is not set" in done.stderr


def test_image_and_documents_are_signed_by_the_program_that_is_configured(world: World, tmp_path: Path) -> None:
    env, log = program(tmp_path, "notation")
    told = world.released(**env)
    assert told["signed"] is True
    called = [json.loads(line) for line in log.read_text().splitlines()]
    signed = [world.digest, told["sbom"], told["provenance"]]
    assert [each[-1] for each in called] == [f"{world.place}/trainbox@{digest}" for digest in signed]
    options = ["sign", "--plugin", "com.amazonaws.signer.notation.plugin", "--id", "arn:key"]
    assert all(each[:-1] == options for each in called)
    assert world.kinds() == sorted([NOTARY, CYCLONEDX, IN_TOTO])


def test_a_program_that_signs_nothing_and_one_that_is_missing_end_it_without_a_tag(
    world: World, tmp_path: Path
) -> None:
    env, _ = program(tmp_path, "notation", idle=True)
    done = world.release(**env)
    assert done.returncode == 1
    assert "ended with 0" in done.stderr
    assert "has no signature" in done.stderr
    assert world.store.tags["trainbox"] == {}
    for given, said in [
        ({"SIGN_WITH": "gpg", "SIGN_KEY": "k"}, "SIGN_WITH: found 'gpg'"),
        ({"SIGN_WITH": "cosign"}, "SIGN_WITH=cosign and no SIGN_KEY"),
        ({"SIGN_KEY": "k"}, "SIGN_KEY is set, and SIGN_WITH is not"),
    ]:
        done = world.release(**given)
        assert done.returncode == 1
        assert said in done.stderr
    assert world.store.tags["trainbox"] == {}
