"""A registry in this process, as ECR is one: OCI 1.1 with referrers, tags that never move, parts that must be there.

https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md. No real ECR was there to compare it with.
"""

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_PATH = re.compile(r"/v2/(?P<repository>.+?)/(?P<kind>manifests|blobs/uploads|blobs|referrers)/(?P<rest>.*)")


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


class Store:
    """What the registry has. `mounts` and `has_referrers` say which of its abilities it has."""

    def __init__(self, *, mounts: bool = False, has_referrers: bool = True) -> None:
        self.mounts, self.has_referrers = mounts, has_referrers
        self.blobs: dict[str, dict[str, bytes]] = {}
        self.manifests: dict[str, dict[str, tuple[str, bytes]]] = {}
        self.tags: dict[str, dict[str, str]] = {}
        self.upload = b""
        #: Where it wants uploads; itself by default.
        self.uploads_at = ""
        #: Every request that changed something, in order.
        self.changes: list[str] = []

    def add_image(self, repository: str, tag: str, **config: object) -> str:
        """An image of two layers; its digest."""
        layers = [f"layer {number} of {tag}".encode() * 1000 for number in range(2)]
        described = json.dumps({"os": "linux", "architecture": "amd64", "config": config}).encode()
        self.blobs.setdefault(repository, {}).update({digest_of(each): each for each in (*layers, described)})
        content = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "digest": digest_of(described),
                "size": len(described),
            },
            "layers": [{"mediaType": "x", "digest": digest_of(each), "size": len(each)} for each in layers],
        }
        body = json.dumps(content, indent=3).encode()
        self.manifests.setdefault(repository, {})[digest_of(body)] = DOCKER_MANIFEST, body
        self.tags.setdefault(repository, {})[tag] = digest_of(body)
        return digest_of(body)

    def referring(self, repository: str, subject: str) -> list[dict[str, Any]]:
        """The documents that refer to an image, by their own content."""
        parsed = {digest: json.loads(body) for digest, (_, body) in self.manifests.get(repository, {}).items()}
        return [
            {"digest": digest, "mediaType": each["mediaType"], "artifactType": each.get("artifactType")}
            for digest, each in parsed.items()
            if each.get("subject", {}).get("digest") == subject
        ]

    def document(self, repository: str, manifest: str) -> Any:
        """What an artifact holds."""
        (layer,) = json.loads(self.manifests[repository][manifest][1])["layers"]
        return json.loads(self.blobs[repository][layer["digest"]])


class _Handler(BaseHTTPRequestHandler):
    store: Store

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, json.dumps({"errors": [{"code": code, "message": code.lower()}]}).encode())

    def handle_request(self) -> None:
        parts = urlsplit(self.path)
        found = _PATH.fullmatch(parts.path)
        if found is None:
            self.refuse(404, "NAME_UNKNOWN")
            return
        if self.command in {"PUT", "POST"}:
            self.store.changes.append(f"{self.command} {parts.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        act = {
            "manifests": self.manifests,
            "blobs": self.read_blob,
            "blobs/uploads": self.upload,
            "referrers": self.list,
        }
        act[found["kind"]](found["repository"], found["rest"], query, body)

    def do_GET(self) -> None:
        self.handle_request()

    def do_HEAD(self) -> None:
        self.handle_request()

    def do_PUT(self) -> None:
        self.handle_request()

    def do_POST(self) -> None:
        self.handle_request()

    def do_PATCH(self) -> None:
        self.handle_request()

    def read_blob(self, repository: str, digest: str, _query: dict[str, str], _body: bytes) -> None:
        content = self.store.blobs.get(repository, {}).get(digest)
        if content is None:
            self.refuse(404, "BLOB_UNKNOWN")
        else:
            self.answer(200, content)

    def upload(self, repository: str, rest: str, query: dict[str, str], body: bytes) -> None:
        blobs = self.store.blobs
        if self.command == "POST":
            mounted = blobs.get(query.get("from", ""), {}).get(query.get("mount", ""))
            if mounted is not None and self.store.mounts:
                blobs.setdefault(repository, {})[query["mount"]] = mounted
                self.answer(201)
            else:
                self.answer(202, Location=f"{self.store.uploads_at}/v2/{repository}/blobs/uploads/one?state=begun")
        elif self.command == "PATCH" and query == {"state": "begun"}:
            self.store.upload = body
            self.answer(202, Location=f"/v2/{repository}/blobs/uploads/{rest}?state=sent")
        elif query.pop("state") != "sent" or digest_of(self.store.upload) != query.get("digest"):
            self.refuse(400, "DIGEST_INVALID")
        else:
            blobs.setdefault(repository, {})[query["digest"]] = self.store.upload
            self.answer(201)

    def manifests(self, repository: str, reference: str, _query: dict[str, str], body: bytes) -> None:
        manifests = self.store.manifests.setdefault(repository, {})
        tags = self.store.tags.setdefault(repository, {})
        digest = reference if reference.startswith("sha256:") else tags.get(reference, "")
        if self.command != "PUT":
            if digest not in manifests:
                self.refuse(404, "MANIFEST_UNKNOWN")
            else:
                kind, content = manifests[digest]
                self.answer(200, content, Content_Type=kind, Docker_Content_Digest=digest)
            return
        parsed, is_tag = json.loads(body), not reference.startswith("sha256:")
        parts = [*parsed.get("layers", ()), *([parsed["config"]] if "config" in parsed else [])]
        if any(each["digest"] not in self.store.blobs.get(repository, {}) for each in parts):
            self.refuse(400, "MANIFEST_BLOB_UNKNOWN")
        elif is_tag and digest not in {"", digest_of(body)} and not reference.startswith("sha256-"):
            self.refuse(400, "TAG_INVALID")
        elif not is_tag and digest_of(body) != reference:
            self.refuse(400, "DIGEST_INVALID")
        else:
            manifests[digest_of(body)] = self.headers["Content-Type"], body
            if is_tag:
                tags[reference] = digest_of(body)
            self.answer(201)

    def list(self, repository: str, subject: str, _query: dict[str, str], _body: bytes) -> None:
        if not self.store.has_referrers:
            self.refuse(404, "UNSUPPORTED")
            return
        found = self.store.referring(repository, subject)
        content = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": found}
        self.answer(200, json.dumps(content).encode(), Content_Type=str(content["mediaType"]))

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@contextlib.contextmanager
def serving(store: Store) -> Iterator[str]:
    """Its host and port."""
    handler = type("Handler", (_Handler,), {"store": store})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
