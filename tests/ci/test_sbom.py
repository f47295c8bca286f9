"""The bill of materials: every Python distribution with its hash and licence, every Debian package with its version."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.ci.conftest import distribution
from tools.ci import sbom
from tools.ci.licences import licence_of

ROOT = Path(__file__).parents[2]
IMAGE = "registry.example.com/trainbox@sha256:" + "d" * 64
LOCK = f"""\
numpy==2.4.6 \\
    --hash=sha256:{"a" * 64}
scikit-learn==1.9.1 ; python_version >= "3.11" \\
    --hash=sha256:{"b" * 64} \\
    --hash=sha256:{"c" * 64}
torch==2.13.0+cpu --hash=sha256:{"e" * 64}
"""


@pytest.fixture
def document(inventory: dict[str, Any]) -> dict[str, Any]:
    return sbom.bill(inventory, IMAGE, sbom.read_lock(LOCK))


def named(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in document["components"]}


def properties(component: dict[str, Any]) -> list[tuple[str, str]]:
    return [(each["name"], each["value"]) for each in component["properties"]]


def test_it_is_of_the_image_that_its_digest_names(document: dict[str, Any]) -> None:
    assert (document["bomFormat"], document["specVersion"], document["version"]) == ("CycloneDX", "1.6", 1)
    image = document["metadata"]["component"]
    assert (image["type"], image["version"]) == ("container", "sha256:" + "d" * 64)
    assert image["purl"].startswith("pkg:oci/trainbox@sha256%3Ad")


def test_the_hash_is_that_of_the_locked_wheel_or_else_that_of_record(document: dict[str, Any]) -> None:
    found = named(document)
    assert found["numpy"]["hashes"] == [{"alg": "SHA-256", "content": "a" * 64}]
    assert ("trainbox:hash-of", "wheel") in properties(found["numpy"])
    assert found["torch"]["hashes"] == [{"alg": "SHA-256", "content": "e" * 64}]
    assert found["scikit-learn"]["hashes"] == [{"alg": "SHA-256", "content": "1" * 64}]
    assert properties(found["scikit-learn"])[1:] == [
        ("trainbox:hash-of", "RECORD"),
        ("trainbox:locked-sha256", "b" * 64),
        ("trainbox:locked-sha256", "c" * 64),
    ]


def test_what_debian_has_installed_has_the_hash_of_its_metadata(inventory: dict[str, Any]) -> None:
    debian = "/usr/lib/python3/dist-packages"
    inventory["distributions"].append(distribution("wheel", "0.38.4", record_sha256=None, directory=debian))
    found = named(sbom.bill(inventory, IMAGE, {}))["wheel"]
    assert found["hashes"] == [{"alg": "SHA-256", "content": "3" * 64}]
    assert ("trainbox:hash-of", "METADATA") in properties(found)


def test_a_distribution_of_nobody_knows_where_ends_it(inventory: dict[str, Any]) -> None:
    inventory["distributions"].append(distribution("stray", "1", record_sha256=None))
    with pytest.raises(SystemExit, match=r"stray 1 in /opt/venv.* has no RECORD"):
        sbom.bill(inventory, IMAGE, {})


def test_what_a_wheel_says_is_compiled_into_it_is_taken_over(document: dict[str, Any]) -> None:
    (inside,) = named(document)["scikit-learn"]["components"]
    assert (inside["name"], inside["version"], inside["purl"]) == ("libgomp", "14.2", "pkg:rpm/almalinux/libgomp@14.2")


def test_debian_packages_and_wheels_that_lie_around_are_in_it(document: dict[str, Any]) -> None:
    found = named(document)
    assert found["libc6"]["purl"] == "pkg:deb/debian/libc6@2.36-9%2Bdeb12u9?arch=amd64&distro=debian-12"
    assert ("trainbox:source-package", "expat") in properties(found["libexpat1"])
    assert found["pip"]["hashes"] == [{"alg": "SHA-256", "content": "2" * 64}]
    assert found["cpython"]["version"] == "3.12.9"


def test_every_reference_names_one_component(document: dict[str, Any]) -> None:
    inner = [part for each in document["components"] for part in each.get("components", ())]
    references = [each["bom-ref"] for each in (*document["components"], *inner)] + ["image"]
    assert len(set(references)) == len(references)
    used = {name for each in document["dependencies"] for name in (each["ref"], *each["dependsOn"])}
    assert used <= set(references)
    site = "/opt/venv/lib/python3.12/site-packages"
    learn = next(each for each in document["dependencies"] if each["ref"].startswith(f"{site}/scikit-learn"))
    assert learn["dependsOn"] == [f"{site}/numpy@2.4.6"], "what an extra would need is not needed"


def test_the_same_image_gives_the_same_bytes(inventory: dict[str, Any]) -> None:
    first, second = (sbom.render(sbom.bill(inventory, IMAGE, {})) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("metadata", "licence"),
    [
        ({"licence_expression": "MIT OR Apache-2.0", "licence": "x"}, ("MIT OR Apache-2.0", True)),
        ({"licence": "MPL-2.0 AND MIT"}, ("MPL-2.0 AND MIT", True)),
        ({"licence": "BSD 3-Clause License\n\nCopyright"}, ("BSD 3-Clause License", False)),
        ({"licence": "Apache 2.0"}, ("Apache-2.0", True)),
        ({"licence": "BSD"}, ("BSD", False)),
        ({"licence_classifiers": ["License :: OSI Approved :: MIT License"]}, ("MIT", True)),
        ({"licence_classifiers": ["License :: OSI Approved :: BSD License"]}, ("BSD License", False)),
        ({"licence_classifiers": ["License :: OSI Approved"], "licence_head": "MIT License"}, ("MIT", True)),
        (
            {"licence_classifiers": [f"License :: OSI Approved :: {name}" for name in ("BSD License", "MIT License")]},
            ("BSD License, MIT License", False),
        ),
        ({}, None),
    ],
)
def test_a_licence_is_an_spdx_expression_only_where_that_is_certain(
    metadata: dict[str, Any], licence: tuple[str, bool] | None
) -> None:
    assert licence_of(distribution("x", "1", **metadata)) == licence


@pytest.mark.process
def test_the_inventory_of_real_packages_has_a_hash_and_a_licence_for_each() -> None:
    """As in an image, of the packages with which this test runs."""
    installed = Path(pytest.__file__).parents[1]
    command = [sys.executable, "-I", str(ROOT / "tools/ci/inventory.py"), str(installed)]
    inventory = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    document = sbom.bill(inventory, IMAGE, {})
    own = [each for each in document["components"] if each["bom-ref"].startswith(str(installed))]
    assert {"numpy", "pytest", "xgboost-cpu"} <= {each["name"] for each in own}
    assert [each["name"] for each in own if not re.fullmatch("[0-9a-f]{64}", each["hashes"][0]["content"])] == []
    assert [each["name"] for each in own if not each.get("licenses")] == []
    brought = [each["name"] for each in own if each.get("components")]
    assert {"pillow", "scikit-learn"} <= set(brought)
