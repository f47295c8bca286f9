"""Where an image comes from: an in-toto statement with SLSA's provenance, https://slsa.dev/spec/v1.0/provenance.

The build writes it about itself. Signed, it says that who holds the key states this; a level above SLSA Build L1 needs
a build service that states it in place of the build.
"""

import datetime as dt
from collections.abc import Mapping
from typing import Any, NamedTuple

MEDIA_TYPE = "application/vnd.in-toto+json"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
#: Names what the parameters below mean; nothing has to be there: https://slsa.dev/spec/v1.0/provenance#buildType.
BUILD_TYPE = "urn:trainbox:image-build:v1"
_BASE = "org.opencontainers.image.base."


class Build(NamedTuple):
    """What is known of one build."""

    repository: str
    """REGISTRY/REPOSITORY of the image."""
    digest: str
    labels: Mapping[str, str]
    """Of the image."""
    env: Mapping[str, str]
    """Of the build service."""


def statement(build: Build) -> dict[str, Any]:
    """The whole statement. What is not known is not in it."""
    env, labels = build.env, build.labels
    source = env.get("CODEBUILD_SOURCE_REPO_URL") or "urn:trainbox:source"
    commit = labels.get("org.opencontainers.image.revision", "unknown")
    dependencies: list[dict[str, Any]] = []
    if commit != "unknown":
        dependencies.append({"name": "source", "uri": f"git+{source}", "digest": {"gitCommit": commit}})
    if lock := labels.get("trainbox.lock"):
        dependencies.append({"name": lock, "digest": _sha256(labels["trainbox.lock.digest"])})
    if base := labels.get(f"{_BASE}digest"):
        uri = f"docker:{labels.get(f'{_BASE}name', 'unknown')}"
        dependencies.append({"name": "base image", "uri": uri, "digest": _sha256(base)})
    parameters = {key: labels[f"trainbox.{key}"] for key in ("variant", "extras") if f"trainbox.{key}" in labels}
    definition = {
        "buildType": BUILD_TYPE,
        "externalParameters": {"source": source, "revision": commit, **parameters},
        "internalParameters": {},
        "resolvedDependencies": dependencies,
    }
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": build.repository, "digest": _sha256(build.digest)}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {"buildDefinition": definition, "runDetails": _run_details(env)},
    }


def _sha256(digest: str) -> dict[str, str]:
    return {"sha256": digest.removeprefix("sha256:")}


def _run_details(env: Mapping[str, str]) -> dict[str, Any]:
    """Who built it. A build outside CodeBuild says so: its builder is a person's machine."""
    arn = env.get("CODEBUILD_BUILD_ARN", "")
    # The project, of which the build is one: arn:aws:codebuild:REGION:ACCOUNT:build/PROJECT:ID.
    builder = arn.replace(":build/", ":project/").rpartition(":")[0] if arn else "urn:trainbox:builder:by-hand"
    details: dict[str, Any] = {"builder": {"id": builder}}
    metadata = {}
    if arn:
        metadata["invocationId"] = arn
    if began := env.get("CODEBUILD_START_TIME", ""):
        when = dt.datetime.fromtimestamp(int(began) / 1000, dt.UTC)
        metadata["startedOn"] = when.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {**details, "metadata": metadata} if metadata else details
