"""An inventory, as tools/ci/inventory.py prints it, of this Python and of packages that are made up."""

from typing import Any

import pytest


def distribution(name: str, version: str, **more: Any) -> dict[str, Any]:
    """What an inventory says of one distribution."""
    return {
        "name": name,
        "version": version,
        "directory": "/opt/venv/lib/python3.12/site-packages",
        "licence_expression": None,
        "licence": None,
        "licence_classifiers": [],
        "licence_head": None,
        "summary": None,
        "requires": [],
        "metadata_sha256": "3" * 64,
        "record_sha256": "1" * 64,
        "sboms": {},
        **more,
    }


@pytest.fixture
def inventory() -> dict[str, Any]:
    """Of an image with every kind of thing."""
    brought = (
        '{"bomFormat": "CycloneDX", "components": [{"type": "library", "name": "libgomp", "version": "14.2",'
        ' "purl": "pkg:rpm/almalinux/libgomp@14.2", "externalReferences": [], "bom-ref": "x"}]}'
    )
    return {
        "python": "3.12.9",
        "system": {"ID": "debian", "VERSION_ID": "12"},
        "distributions": [
            distribution("numpy", "2.4.6", licence_expression="BSD-3-Clause AND 0BSD"),
            distribution(
                "scikit_learn",
                "1.9.1",
                licence="BSD-3-Clause",
                requires=["numpy>=1.2", "pytest; extra == 'tests'"],
                sboms={"scikit_learn-1.9.1.dist-info/sboms/auditwheel.cdx.json": brought},
            ),
            distribution("torch", "2.13.0+cpu", licence_classifiers=["License :: OSI Approved :: BSD License"]),
            distribution(
                "skops", "0.16.0", licence_classifiers=["License :: OSI Approved"], licence_head="MIT License"
            ),
            distribution("trainbox", "0.1.0", licence_expression="Apache-2.0"),
        ],
        "wheels": [
            {
                "name": "pip",
                "version": "25.0.1",
                "path": "/usr/local/lib/python3.12/ensurepip/_bundled/pip-25.0.1-py3-none-any.whl",
                "sha256": "2" * 64,
            }
        ],
        "debian": [
            {"name": "libc6", "version": "2.36-9+deb12u9", "architecture": "amd64", "source": "glibc"},
            {"name": "libexpat1", "version": "2.5.0-1", "architecture": "amd64", "source": "expat"},
        ],
    }
