"""A registry's own HTTP API: read, copy by digest, and attach what refers to an image.

https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md. With basic authentication or none, as ECR and
Docker's own registry take it.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode, urljoin, urlsplit

import docker
import requests

from tools.ci.messages import emit, fail

#: What SageMaker takes for training and hosting alike; an OCI index, which newer builders make, hosting rejects:
#: https://docs.docker.com/reference/api/registry/latest/ and
#: https://github.com/aws/amazon-sagemaker-feedback/issues/180
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
_ANY_MANIFEST = (
    DOCKER_MANIFEST,
    "application/vnd.docker.distribution.manifest.list.v2+json",
    OCI_MANIFEST,
    OCI_INDEX,
)
#: The content of a configuration that says nothing, as the specification of images has it.
_EMPTY = b"{}"
_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
_UNAUTHORIZED, _NOT_FOUND = 401, 404
_CREATED, _ACCEPTED = 201, 202
_TIMEOUT_S = 60
#: A layer may have gigabytes, and a registry says nothing until it has stored them.
_BLOB_TIMEOUT_S = 900
DOCS = "docs/build-and-push.md has the commands and the permissions"
LOG_IN = "log in again: a token of ECR is good for 12 hours, and for its own registry"
DENIED = f"the role may not do that there; {DOCS}"


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
    """What a registry has under a tag or a digest."""

    content: bytes
    media_type: str

    @property
    def digest(self) -> str:
        """By which anybody gets these very bytes."""
        return digest_of(self.content)

    @property
    def config(self) -> str:
        """The digest of the configuration; nothing for an index."""
        return str(json.loads(self.content).get("config", {}).get("digest", ""))

    def is_of(self, image_id: str) -> bool:
        """Whether it is this image. An engine names an image by its configuration, a newer one by its manifest."""
        return image_id in {self.config, self.digest}

    def blobs(self) -> list[tuple[str, int]]:
        """The digests and sizes of what it is made of, the configuration last."""
        parsed = json.loads(self.content)
        return [(each["digest"], each["size"]) for each in (*parsed["layers"], parsed["config"])]


class Attachment(NamedTuple):
    """A document about an image."""

    artifact_type: str
    title: str
    content: bytes


class _Sized:
    """A stream whose length is known: requests says it, and does not read it all first."""

    def __init__(self, stream: Any, size: int) -> None:  # noqa: ANN401 - urllib3's
        self.len = size
        self.read = stream.read


def digest_of(content: bytes) -> str:
    """As registries name content."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


class Registry:
    """One registry, asked over HTTP."""

    def __init__(self, place: str) -> None:
        self.place = place
        # As the engine has it: https is spared on loopback alone.
        scheme = "http" if re.match(r"(localhost|127\.[0-9.]+)(:|$)", place) else "https"
        self._root = f"{scheme}://{place}/v2/"
        known = docker.auth.load_config().resolve_authconfig(place) or {}
        self._auth = (known["username"], known["password"]) if "password" in known else None

    def _ask(
        self,
        verb: str,
        path: str,
        *,
        absent: bool = False,
        timeout: float = _TIMEOUT_S,
        **options: Any,  # noqa: ANN401 - those of requests
    ) -> requests.Response:
        """What it answers; an error of it ends the build, but where something may be absent."""
        url = urljoin(self._root, path)
        if urlsplit(url).netloc != self.place:
            fail(f"{self.place} sends us to {url}", "the token is for this registry alone")
        try:
            answer = requests.request(verb, url, timeout=timeout, auth=self._auth, **options)
        except requests.RequestException as error:
            fail(f"{self.place} does not answer: {error}", "is this the name of a registry?")
        if not answer.ok and not (absent and answer.status_code == _NOT_FOUND):
            hint = LOG_IN if answer.status_code == _UNAUTHORIZED else DENIED
            fail(f"{self.place} refuses {verb} {path}: {answer.status_code} {answer.text.strip()[:500]}", hint)
        return answer

    def find(self, repository: str, reference: str) -> Manifest | None:
        """What it has under a tag or a digest; None if nothing."""
        answer = self._ask(
            "GET", f"{repository}/manifests/{reference}", absent=True, headers={"Accept": ",".join(_ANY_MANIFEST)}
        )
        if answer.status_code == _NOT_FOUND:
            return None
        found = Manifest(answer.content, answer.headers["Content-Type"].partition(";")[0])
        if reference.startswith("sha256:") and found.digest != reference:
            fail(f"{self.place} gives other bytes for {repository}@{reference}", "do not use this registry")
        return found

    def put(self, repository: str, reference: str, manifest: Manifest) -> None:
        """Store a manifest whose parts are there, under a tag or its own digest, and read it back."""
        self._ask(
            "PUT",
            f"{repository}/manifests/{reference}",
            data=manifest.content,
            headers={"Content-Type": manifest.media_type},
        )
        if self.find(repository, reference) != manifest:
            fail(f"{self.place} does not have what was put as {repository}:{reference}", "is something else pushing?")

    def copy(self, source: str, target: str, digest: str) -> Manifest:
        """Copy one image from repository to repository, without a tag: byte for byte, nothing is packed anew."""
        found = self.find(source, digest)
        if found is None:
            fail(f"{self.place}/{source} has no {digest}", "push it first")
        for blob, size in found.blobs():
            self._copy_blob(source, target, blob, size)
        self.put(target, digest, found)
        return found

    def _has_blob(self, repository: str, digest: str) -> bool:
        return self._ask("HEAD", f"{repository}/blobs/{digest}", absent=True).ok

    def _copy_blob(self, source: str, target: str, digest: str, size: int) -> None:
        if self._has_blob(target, digest):
            return
        begun = self._ask("POST", f"{target}/blobs/uploads/?mount={digest}&from={source}")
        if begun.status_code == _CREATED:
            emit(f"{digest}: mounted from {source}")
            return
        with self._ask("GET", f"{source}/blobs/{digest}", stream=True, timeout=_BLOB_TIMEOUT_S) as content:
            self._upload(begun, digest, _Sized(content.raw, size))
        emit(f"{digest}: copied from {source}")

    def _upload(self, begun: requests.Response, digest: str, content: bytes | _Sized) -> None:
        """End an upload that was begun, as `docker push` does: one PATCH with all, and a PUT with the digest.

        The registry checks the digest.
        """
        kind = {"Content-Type": "application/octet-stream"}
        given = self._ask("PATCH", _next(begun), data=content, headers=kind, timeout=_BLOB_TIMEOUT_S)
        location = _next(given)
        separator = "&" if urlsplit(location).query else "?"
        self._ask("PUT", location + separator + urlencode({"digest": digest}), timeout=_BLOB_TIMEOUT_S)

    def read_blob(self, repository: str, digest: str) -> bytes:
        """A small blob, a configuration."""
        content = self._ask("GET", f"{repository}/blobs/{digest}").content
        if digest_of(content) != digest:
            fail(f"{self.place} gives other bytes for {repository}@{digest}", "do not use this registry")
        return content

    def _put_blob(self, repository: str, content: bytes) -> None:
        digest = digest_of(content)
        if not self._has_blob(repository, digest):
            self._upload(self._ask("POST", f"{repository}/blobs/uploads/"), digest, content)

    # -- what refers to an image -------------------------------------------------------------------------------------

    def referrers(self, repository: str, digest: str) -> list[Mapping[str, Any]]:
        """The descriptors of what refers to an image: signatures, SBOMs and the like."""
        answer = self._ask("GET", f"{repository}/referrers/{digest}", absent=True, headers={"Accept": OCI_INDEX})
        if answer.ok:
            return list(answer.json()["manifests"])
        kept = self.find(repository, _kept_under(digest))
        return list(json.loads(kept.content)["manifests"]) if kept else []

    def attach(self, repository: str, subject: Manifest, what: Attachment) -> str:
        """Store a document that refers to an image; the image and its tag stay what they are.

        Returns:
            The digest of the document's manifest.
        """
        for content in (_EMPTY, what.content):
            self._put_blob(repository, content)
        manifest = Manifest(_referring(subject, what), OCI_MANIFEST)
        self.put(repository, manifest.digest, manifest)
        answer = self._ask("GET", f"{repository}/referrers/{subject.digest}", absent=True)
        if answer.status_code == _NOT_FOUND:
            self._keep_under_tag(repository, subject.digest, manifest, what)
        if manifest.digest not in {each["digest"] for each in self.referrers(repository, subject.digest)}:
            fail(
                f"{self.place} does not list {what.title} among the referrers of {subject.digest}",
                "does it know OCI 1.1 referrers?",
            )
        return manifest.digest

    def _keep_under_tag(self, repository: str, digest: str, manifest: Manifest, what: Attachment) -> None:
        """For a registry that is older than the referrers API: the specification's own way, a tag of a fixed name."""
        others = [each for each in self.referrers(repository, digest) if each["digest"] != manifest.digest]
        new = {**_descriptor(OCI_MANIFEST, manifest.content), "artifactType": what.artifact_type}
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*others, new]}
        self.put(repository, _kept_under(digest), Manifest(_as_json(index), OCI_INDEX))


def _next(answer: requests.Response) -> str:
    """Where an upload goes on."""
    return urljoin(answer.url, answer.headers["Location"])


def _kept_under(digest: str) -> str:
    return digest.replace(":", "-")


def _as_json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _descriptor(media_type: str, content: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}


def _referring(subject: Manifest, what: Attachment) -> bytes:
    """An artifact's manifest: https://github.com/opencontainers/image-spec/blob/v1.1.1/manifest.md."""
    title = {"org.opencontainers.image.title": what.title}
    return _as_json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": what.artifact_type,
            "config": _descriptor(_EMPTY_TYPE, _EMPTY),
            "layers": [{**_descriptor(what.artifact_type, what.content), "annotations": title}],
            "subject": _descriptor(subject.media_type, subject.content),
        }
    )
