"""The bill of materials of an image, CycloneDX 1.6: `python -m tools.ci.sbom INVENTORY IMAGE [LOCK …]`.

IMAGE is REGISTRY/REPOSITORY@DIGEST. The same image gives the same bytes: nothing in it is of the time of writing. The
hash of a component is that of the wheel, where a LOCK names one for that version; where it names several, one for each
platform, all are properties, and the hash is that of RECORD, pip's list of the digests of all files it has installed.
"""

import json
import re
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tools.ci.audit import normalise
from tools.ci.licences import licence_of
from tools.ci.messages import fail

MEDIA_TYPE = "application/vnd.cyclonedx+json"
_LOCKED = re.compile(r"([A-Za-z0-9._-]+)==([^\s;\\]+)")
#: Where dpkg installs distributions; it keeps no RECORD, and is the one that knows their files.
_OF_DEBIAN = "/usr/lib/python3/dist-packages"
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_REQUIRED = re.compile(r"[A-Za-z0-9._-]+")


def read_lock(text: str) -> dict[tuple[str, str], list[str]]:
    """The SHA-256 of the wheels that a lock allows, by name and version."""
    found: dict[tuple[str, str], list[str]] = {}
    for entry in text.replace("\\\n", " ").splitlines():
        if locked := _LOCKED.match(entry):
            found.setdefault((normalise(locked[1]), locked[2]), []).extend(_HASH.findall(entry))
    return {key: sorted(set(hashes)) for key, hashes in found.items()}


def bill(inventory: Mapping[str, Any], image: str, locked: Mapping[tuple[str, str], list[str]]) -> dict[str, Any]:
    """The whole document."""
    name, _, digest = image.partition("@")
    repository = name.rpartition("/")[2]
    root = {
        "type": "container",
        "bom-ref": "image",
        "name": repository,
        "version": digest,
        "purl": f"pkg:oci/{repository}@{quote(digest, safe='')}?repository_url={quote(name, safe='')}",
        "hashes": _hashes(digest.removeprefix("sha256:")),
    }
    python = {
        "type": "platform",
        "bom-ref": "python",
        "name": "cpython",
        "version": inventory["python"],
        "purl": f"pkg:generic/cpython@{inventory['python']}",
    }
    distributions = [_distribution(each, locked) for each in inventory["distributions"]]
    wheels = [_wheel(each) for each in inventory["wheels"]]
    debian = [_debian(each, inventory["system"]) for each in inventory["debian"]]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, image)}",
        "version": 1,
        "metadata": {"component": root, "tools": {"components": [{"type": "application", "name": "tools/ci/sbom.py"}]}},
        "components": [python, *distributions, *wheels, *debian],
        "dependencies": list(_dependencies(inventory["distributions"])),
    }


def _hashes(sha256: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": sha256}]


def _reference(distribution: Mapping[str, Any]) -> str:
    return f"{distribution['directory']}/{normalise(distribution['name'])}@{distribution['version']}"


def _distribution(each: Mapping[str, Any], locked: Mapping[tuple[str, str], list[str]]) -> dict[str, Any]:
    name, version = normalise(each["name"]), each["version"]
    public = locked.get((name, version), locked.get((name, version.partition("+")[0]), []))
    properties = [("trainbox:directory", each["directory"])]
    if len(public) == 1:
        sha256, of = public[0], "wheel"
    elif each["record_sha256"]:
        sha256, of = each["record_sha256"], "RECORD"
    elif each["directory"].startswith(_OF_DEBIAN):
        sha256, of = each["metadata_sha256"], "METADATA"
    else:
        fail(f"{name} {version} in {each['directory']} has no RECORD and no hash in a lock", "how was it installed?")
    properties.append(("trainbox:hash-of", of))
    properties += [("trainbox:locked-sha256", one) for one in public if one != sha256]
    component = {
        "type": "library",
        "bom-ref": _reference(each),
        "name": name,
        "version": version,
        "purl": f"pkg:pypi/{name}@{quote(version, safe='')}",
        "hashes": _hashes(sha256),
        "properties": [{"name": key, "value": value} for key, value in properties],
    }
    if licence := licence_of(each):
        text, is_spdx = licence
        component["licenses"] = [{"expression": text}] if is_spdx else [{"license": {"name": text}}]
    if inside := [part for path, text in each["sboms"].items() for part in _brought(_reference(each), path, text)]:
        component["components"] = inside
    return component


def _brought(reference: str, path: str, text: str) -> Iterator[dict[str, Any]]:
    """What a wheel's own bill of materials says is compiled into it; only CycloneDX can be taken over."""
    try:
        content = json.loads(text)
    except ValueError:
        content = {}
    if not isinstance(content, dict) or content.get("bomFormat") != "CycloneDX":
        yield {"type": "file", "bom-ref": f"{reference}#{path}", "name": path}
        return
    for number, part in enumerate(content.get("components", ())):
        kept = {key: part[key] for key in ("type", "name", "version", "purl", "hashes", "licenses") if key in part}
        yield {**kept, "bom-ref": f"{reference}#{path}#{number}"}


def _wheel(each: Mapping[str, str]) -> dict[str, Any]:
    name = normalise(each["name"])
    return {
        "type": "library",
        "bom-ref": each["path"],
        "name": name,
        "version": each["version"],
        "purl": f"pkg:pypi/{name}@{each['version']}?file_name={quote(Path(each['path']).name)}",
        "hashes": _hashes(each["sha256"]),
        "properties": [{"name": "trainbox:directory", "value": str(Path(each["path"]).parent)}],
    }


def _debian(each: Mapping[str, str], system: Mapping[str, str]) -> dict[str, Any]:
    name, version, architecture = each["name"], each["version"], each["architecture"]
    distro = f"{system.get('ID', 'debian')}-{system.get('VERSION_ID', '')}"
    place = f"pkg:deb/{system.get('ID', 'debian')}/{quote(name, safe='')}@{quote(version, safe='')}"
    return {
        "type": "library",
        "bom-ref": f"deb/{name}@{version}/{architecture}",
        "name": name,
        "version": version,
        "purl": f"{place}?arch={architecture}&distro={distro}",
        "properties": [{"name": "trainbox:source-package", "value": each["source"]}],
    }


def _dependencies(distributions: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Which distribution requires which of the same directory, without what only extras require."""
    every = {(each["directory"], normalise(each["name"])): _reference(each) for each in distributions}
    yield {"ref": "image", "dependsOn": ["python", *sorted(set(every.values()))]}
    for each in distributions:
        plain = [text for text in each["requires"] if "extra ==" not in text]
        names = [found[0] for text in plain if (found := _REQUIRED.match(text))]
        keys = [(each["directory"], normalise(name)) for name in names]
        yield {"ref": _reference(each), "dependsOn": sorted({every[key] for key in keys if key in every})}


def render(document: Mapping[str, Any]) -> bytes:
    """As it is attached to the image."""
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def main() -> None:
    """Print the document."""
    inventory, image, *locks = sys.argv[1:]
    locked: dict[tuple[str, str], list[str]] = {}
    for path in locks:
        locked |= read_lock(Path(path).read_text())
    sys.stdout.buffer.write(render(bill(json.loads(Path(inventory).read_text()), image, locked)))


if __name__ == "__main__":
    main()
