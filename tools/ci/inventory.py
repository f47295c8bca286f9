"""What an image holds, found from within it: its Python distributions, the wheels that lie in it, Debian's packages.

`docker run IMAGE python -I - <tools/ci/inventory.py` prints it as JSON, `python -I tools/ci/inventory.py DIRECTORY …`
that of distributions that lie elsewhere. The standard library alone, and nothing of ours.
"""

import email.parser
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import sys

#: Where wheels lie that nobody has installed, from which `python -m venv` takes pip: Debian's; Python has its own.
_WHEELS_OF_DEBIAN = pathlib.Path("/usr/share/python-wheels")
#: What a wheel may bring of its own: https://peps.python.org/pep-0770/.
_SBOMS = "sboms/"
_LICENCE_FILE = re.compile(r"(licen[cs]e|copying)[^/]*$", re.IGNORECASE)


def directories() -> "list[str]":
    """Every place that holds distributions: those of this environment, and those of the Python below it."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    below = [f"{prefix}/lib/{version}/site-packages" for prefix in (sys.prefix, sys.base_prefix, "/usr/local")]
    debian = ["/usr/lib/python3/dist-packages", f"/usr/local/lib/{version}/dist-packages"]
    return [path for path in dict.fromkeys((*below, *debian)) if pathlib.Path(path).is_dir()]


def describe(found: importlib.metadata.Distribution, directory: str) -> "dict[str, object]":
    """One distribution, as its own metadata has it."""
    text = found.read_text("METADATA") or found.read_text("PKG-INFO") or ""
    meta = email.parser.HeaderParser().parsestr(text)
    record = found.read_text("RECORD")
    files = [str(path) for path in found.files or ()]
    own = [path for path in files if ".dist-info/" in path]
    return {
        "name": meta["Name"],
        "version": meta["Version"],
        "directory": directory,
        "licence_expression": meta.get("License-Expression"),
        "licence": meta.get("License"),
        "licence_classifiers": [each for each in meta.get_all("Classifier", []) if each.startswith("License ::")],
        "licence_head": next(filter(None, (head(found, path) for path in own if _LICENCE_FILE.search(path))), None),
        "summary": meta.get("Summary"),
        "requires": list(found.requires or ()),
        "metadata_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "record_sha256": hashlib.sha256(record.encode()).hexdigest() if record else None,
        "sboms": {path: read(found, path) for path in sorted(own) if f".dist-info/{_SBOMS}" in path},
    }


def read(found: importlib.metadata.Distribution, path: str) -> str:
    """A file of a distribution."""
    return pathlib.Path(str(found.locate_file(path))).read_text(errors="replace")


def head(found: importlib.metadata.Distribution, path: str) -> "str | None":
    """The first line of a licence."""
    there = pathlib.Path(str(found.locate_file(path))).is_file()
    lines = read(found, path).splitlines() if there else []
    return next((line.strip() for line in lines if line.strip()), None)


def wheels() -> "list[dict[str, str]]":
    """The wheels that lie in the image."""
    bundled = pathlib.Path(os.__file__).parent / "ensurepip" / "_bundled"
    return [
        {
            "name": path.name.split("-")[0],
            "version": path.name.split("-")[1],
            "path": str(path),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for directory in (bundled, _WHEELS_OF_DEBIAN)
        for path in sorted(directory.glob("*.whl"))
    ]


def debian() -> "list[dict[str, str]]":
    """The packages that are installed, as dpkg has written them down."""
    status = pathlib.Path("/var/lib/dpkg/status")
    blocks = status.read_text(errors="replace").split("\n\n") if status.exists() else []
    parsed = [email.parser.HeaderParser().parsestr(block) for block in blocks if block.strip()]
    return [
        {
            "name": each["Package"],
            "version": each["Version"],
            "architecture": each["Architecture"],
            "source": each.get("Source", each["Package"]),
        }
        for each in parsed
        if each.get("Status", "").endswith(" installed")
    ]


def system() -> "dict[str, str]":
    """Which system the image is."""
    file = pathlib.Path("/etc/os-release")
    lines = file.read_text().splitlines() if file.exists() else []
    return {key: value.strip('"') for key, _, value in (line.partition("=") for line in lines) if key}


def main() -> None:
    """Print everything."""
    distributions = [
        describe(found, directory)
        for directory in sys.argv[1:] or directories()
        for found in importlib.metadata.distributions(path=[directory])
        if found.metadata["Name"]
    ]
    content = {
        "python": platform.python_version(),
        "system": system(),
        "distributions": sorted(distributions, key=lambda each: (str(each["name"]).lower(), str(each["directory"]))),
        "wheels": wheels(),
        "debian": debian(),
    }
    json.dump(content, sys.stdout, indent=1, sort_keys=True)


if __name__ == "__main__":
    main()
