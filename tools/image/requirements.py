"""Print what a lock says of some packages and of all that they need: `requirements.py LOCK PACKAGE ...`.

A PACKAGE is a distribution, or `trainbox[EXTRA,EXTRA]`: what pyproject.toml asks for, with these extras. A lock is what
`uv pip compile --generate-hashes` writes: each entry names those that need it, which gives the closure without a
resolver, an index or an installed package. Standard library only: the image's first stage runs this.
"""

import argparse
import platform
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

_EXTRAS = re.compile(r"trainbox\[([a-z0-9,]*)\]")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NEEDED_BY = re.compile(r" {4}# (?:via| ) +([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^]]*\])?$", re.MULTILINE)


def normalize(name: str) -> str:
    """Return the one spelling of a distribution's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_entries(lock: str) -> dict[str, list[str]]:
    """Return the entries of a lock by name: the line with the version, those with the hashes, the comments below."""
    entries: dict[str, list[str]] = {}
    entry = ""
    for line in lock.splitlines():
        found = _NAME.match(line)
        if found:
            entry = line
            entries.setdefault(normalize(found[0]), []).append(entry)
        elif entry and line.startswith(" "):
            name = normalize(_NAME.match(entry)[0])  # type: ignore[index] # an entry begins with its name
            entries[name][-1] += "\n" + line
    return entries


def needs(entries: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
    """Return which packages each one needs."""
    found: dict[str, set[str]] = {name: set() for name in entries}
    for name, texts in entries.items():
        for text in texts:
            for parent in _NEEDED_BY.findall(text):
                found.setdefault(normalize(parent), set()).add(name)
    return found


def closure(wanted: Iterable[str], needed: Mapping[str, set[str]]) -> set[str]:
    """Return these packages and all that they need, directly or not."""
    found: set[str] = set()
    waiting = list(wanted)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(needed[name])
    return found


def expand(names: Sequence[str], extras: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield the requirements of some extras, those that only name other extras replaced by them."""
    for name in names:
        if name not in extras:
            raise SystemExit(f"there is no extra {name!r}; there are: {', '.join(extras)}")
        for requirement in extras[name]:
            named = _EXTRAS.fullmatch(requirement)
            if named:
                yield from expand(named[1].split(","), extras)
            else:
                yield requirement


def requirements_of(package: str, pyproject: str) -> list[str]:
    """Return the requirements that a PACKAGE of the command line stands for."""
    named = _EXTRAS.fullmatch(package)
    if not named:
        return [package]
    project = tomllib.loads(pyproject)["project"]
    extras = [name for name in named[1].split(",") if name]
    return [*project["dependencies"], *expand(extras, project["optional-dependencies"])]


def choose(lock: str, requirements: Iterable[str]) -> dict[str, list[str]]:
    """Return the entries of a lock that some requirements need, by name.

    A requirement with a marker (`xgboost-cpu; platform_machine == 'x86_64'`) may be absent: the lock has what fits.
    """
    entries = read_entries(lock)
    wanted = set()
    for requirement in requirements:
        name = normalize(_NAME.match(requirement)[0])  # type: ignore[index] # a requirement begins with its name
        if name in entries:
            wanted.add(name)
        elif ";" not in requirement:
            raise SystemExit(f"the lock has no {name}: run `make lock`")
    return {name: entries[name] for name in sorted(closure(wanted, needs(entries)))}


def main() -> None:
    """Print the entries."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lock", type=Path)
    parser.add_argument("packages", nargs="+", metavar="PACKAGE")
    here = f"py{sys.version_info[0]}{sys.version_info[1]}-{platform.machine()}"
    parser.add_argument("--platform", action="version", version=here, help="print what locks of images are named by")
    parser.add_argument("--without", default="", metavar="NAME,NAME", help="leave these out, but not what they need")
    parser.add_argument("--only", default="", metavar="NAME,NAME", help="leave all others out")
    given = parser.parse_args()
    if not given.lock.exists():
        sys.exit(f"{given.lock} does not exist: nothing is locked for this variant and Python; run `make lock`")
    pyproject = Path("pyproject.toml").read_text(encoding="utf-8")
    requirements = [each for package in given.packages for each in requirements_of(package, pyproject)]
    for name, texts in choose(given.lock.read_text(encoding="utf-8"), requirements).items():
        if name not in given.without.split(",") and (not given.only or name in given.only.split(",")):
            print(*texts, sep="\n")


if __name__ == "__main__":
    main()
