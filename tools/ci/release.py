"""From candidate to release: copy by digest, attach SBOM and provenance, have them signed, and then give the tag."""

import json
from collections.abc import Mapping
from pathlib import Path

from tools.ci import provenance, sbom, sign
from tools.ci.messages import emit, fail
from tools.ci.registry import DOCKER_MANIFEST, Attachment, Manifest, Name, Registry, digest_of


def repository(env: Mapping[str, str]) -> str:
    """Where released images are."""
    return env.get("ECR_REPOSITORY") or "trainbox"


def release(candidate: Name, digest: str, env: Mapping[str, str], root: Path) -> dict[str, object]:
    """Make a release of a candidate that has passed. A tag is there last: what has one has all that belongs to it.

    Returns:
        The image, and what is attached to it.
    """
    registry, target = Registry(candidate.registry), Name(candidate.registry, repository(env), candidate.tag)
    present = registry.find(target.repository, target.tag)
    if present and present.digest != digest:
        fail(f"{target} is there already, with other bytes: {present.digest}", "a tag names one image for ever")
    image = registry.copy(candidate.repository, target.repository, digest)
    if image.media_type != DOCKER_MANIFEST:
        fail(f"{candidate} is an {image.media_type}, expected {DOCKER_MANIFEST}", "SageMaker takes no other")
    documents = {each.artifact_type: each for each in _documents(registry, target, image, env, root)}
    attached = _attach(registry, target.repository, image, documents)
    signed = sign.sign(registry, target.repository, (digest, *attached.values()), env)
    if present is None:
        registry.put(target.repository, target.tag, image)
    emit(f"released {target}: {digest}")
    return {
        "image_uri": f"{target.registry}/{target.repository}@{digest}",
        "image_digest": digest,
        "image_tag": target.tag,
        "variant": env.get("VARIANT") or "cpu",
        "sbom": attached[sbom.MEDIA_TYPE],
        "provenance": attached[provenance.MEDIA_TYPE],
        "signed": signed,
    }


def _documents(
    registry: Registry, target: Name, image: Manifest, env: Mapping[str, str], root: Path
) -> tuple[Attachment, Attachment]:
    """The SBOM and the provenance, which also stay in reports/."""
    variant, reports = env.get("VARIANT") or "cpu", root / "reports"
    inventory = json.loads((reports / f"inventory-{variant}.json").read_text())
    place = f"{target.registry}/{target.repository}"
    config = json.loads(registry.read_blob(target.repository, image.config))
    labels = {key: value for key, value in (config["config"].get("Labels") or {}).items() if value != "unknown"}
    if "org.opencontainers.image.base.digest" not in labels:
        emit("warning: the image has no label with the digest of its base: the provenance does not name it")
    locked = _read_lock(root, labels)
    build = provenance.Build(place, image.digest, labels, env)
    documents = (
        Attachment(
            sbom.MEDIA_TYPE, "sbom.cdx.json", sbom.render(sbom.bill(inventory, f"{place}@{image.digest}", locked))
        ),
        Attachment(provenance.MEDIA_TYPE, "provenance.json", sbom.render(provenance.statement(build))),
    )
    for each in documents:
        (reports / f"image-{variant}.{each.title}").write_bytes(each.content)
    return documents


def _read_lock(root: Path, labels: Mapping[str, str]) -> dict[tuple[str, str], list[str]]:
    """The hashes of the lock that the image was made from, as its labels say."""
    if "trainbox.lock" not in labels:
        emit("warning: the image has no label with its lock: the hashes of its SBOM are those of what pip installed")
        return {}
    lock = (root / labels["trainbox.lock"]).read_bytes()
    if digest_of(lock) != labels.get("trainbox.lock.digest"):
        fail(f"the image was made from another {labels['trainbox.lock']} than this", "release it from its own commit")
    return sbom.read_lock(lock.decode())


def _attach(registry: Registry, place: str, image: Manifest, documents: Mapping[str, Attachment]) -> dict[str, str]:
    """Attach what is not attached yet, so that a release can be finished that was interrupted."""
    there = {each.get("artifactType"): each["digest"] for each in registry.referrers(place, image.digest)}
    attached = {}
    for kind, document in documents.items():
        attached[kind] = there.get(kind) or registry.attach(place, image, document)
        emit(f"{document.title}: {attached[kind]}, attached to {image.digest}")
    return attached
