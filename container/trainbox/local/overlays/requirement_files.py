"""What decides the outcome of `pip install`: requirement files, those they name, and local paths, as digests."""

import hashlib
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec

from trainbox.contract.credentials.secrets import secrets
from trainbox.errors import RequirementsError
from trainbox.local.source import walk

_PINNED = re.compile(r"[\w.-]++(?:\[[^\]]*+\])?+\s*+===?\s*+[^\s,;*]++\s*+(?:[;#]|--hash|$)", re.ASCII)
_COMMIT = re.compile(r"@[0-9a-f]{40}\b|#sha256=[0-9a-f]{64}\b")
_VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)\}")
_EXTRAS = re.compile(r"\[[^\]\[]*\]$")
_ARCHIVES = (".whl", ".zip", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
#: Long names of pip's options that name files, by their short ones.
_OPTIONS = {"-r": "--requirement", "-c": "--constraint", "-e": "--editable", "-f": "--find-links"}
_ABSENT = "absent"


class Requirements(msgspec.Struct, frozen=True):
    """What was read."""

    #: Of every file and directory that counts, by its path.
    digests: Mapping[str, str]
    #: Whether the index could offer something else tomorrow.
    is_floating: bool
    #: Whether something is built from a directory or archive of this machine.
    is_local: bool
    #: Whether such a directory must stay where it was.
    is_editable: bool
    #: Passwords and tokens of URLs, which no text that is shown may hold.
    credentials: tuple[str, ...]


class _Reader:
    """Follows the files; each is read once."""

    def __init__(self, directory: Path, variables: Mapping[str, str]) -> None:
        self.directory = directory
        self.variables = variables
        self.digests: dict[str, str] = {}
        self.is_floating = self.is_local = self.is_editable = False
        self.credentials: set[str] = set()

    def read(self, path: Path, within: Sequence[Path], *, constrains: bool = False) -> None:
        if path in within:
            cycle = " -> ".join(map(str, [*within[within.index(path) :], path]))
            raise RequirementsError(f"{path} includes itself: {cycle}", hint="take one of the -r or -c lines out")
        try:
            content = path.read_bytes()
        except OSError as error:  # pip says which line asks for it
            self.digests[str(path)] = f"{_ABSENT}: {error.strerror}"
            return
        self.digests[str(path)] = hashlib.sha256(content).hexdigest()
        for line in logical_lines(content.decode(errors="replace")):
            expanded = _VARIABLE.sub(lambda found: self.variables.get(found[1]) or found[0], line)
            self.credentials.update(secrets({"": expanded}))
            self._line(expanded, [*within, path], constrains=constrains)

    def read_variables(self) -> None:
        """What the variables of pip name."""
        for name in ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT", "PIP_REQUIREMENT"):
            for value in self.variables.get(name, "").split():
                if _is_here(value):
                    self.read(_normal(self.directory / _local(value)), [], constrains=True)
        for value in self.variables.get("PIP_FIND_LINKS", "").split():
            if _is_here(value):
                self._listing(value, self.directory)

    def _line(self, line: str, within: Sequence[Path], *, constrains: bool) -> None:
        if not line.startswith("-"):
            self._requirement(line, constrains=constrains)
            return
        name, value = _option(line)
        if name in {"--requirement", "--constraint"}:
            only_constrains = constrains or name == "--constraint"
            if _is_here(value):
                self.read(_normal(within[-1].parent / _local(value)), within, constrains=only_constrains)
            else:
                self.is_floating = True
        elif name == "--editable":
            self.is_editable = True
            self._requirement(value, constrains=constrains)
        elif name == "--find-links" and _is_here(value):
            self._listing(value, within[-1].parent)

    def _requirement(self, text: str, *, constrains: bool) -> None:
        what = text.partition(" ;")[0].partition(" --")[0].strip()
        target = what.partition("@")[2].strip() if re.match(r"[\w.-]++(?:\[[^\]]*+\])?+\s*+@", what) else what
        if not _is_here(target):
            self.is_floating = self.is_floating or not _COMMIT.search(target)
            return
        if target.startswith(("file:", ".", "/")) or os.sep in target or target.endswith(_ARCHIVES):
            self.is_local = True
            path = self.directory / _EXTRAS.sub("", _local(target))
            self.digests[str(path)] = digest(path)
        self.is_floating = self.is_floating or not (constrains or _PINNED.match(what))

    def _listing(self, value: str, beside: Path) -> None:
        """Of a directory of archives names, sizes and times: it may hold gigabytes."""
        for directory in dict.fromkeys((beside / _local(value), self.directory / _local(value))):
            entries = sorted(directory.iterdir()) if directory.is_dir() else []
            told = [(entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in entries if entry.exists()]
            self.digests[f"{directory}/"] = hashlib.sha256(repr(told).encode()).hexdigest()


def read_requirements(install: Sequence[str], directory: Path, variables: Mapping[str, str]) -> Requirements:
    """Read everything that pip would, without pip.

    Args:
        install: The arguments of `pip install`, as `find_requirements` finds them.
        directory: Where pip would run.
        variables: What `${NAME}` stands for; `PIP_CONSTRAINT` and `PIP_FIND_LINKS` name files, too.

    Raises:
        RequirementsError: A file includes itself.
    """
    reader = _Reader(_normal(directory), variables)
    for option, argument in zip(("", *install), install, strict=False):
        if argument == ".":  # what it asks for stands in files of which pip alone knows how to read them
            reader.is_floating = reader.is_local = True
            reader.digests["."] = digest(reader.directory)
        elif option == "-r":
            reader.read(reader.directory / argument, [])
    reader.read_variables()
    return Requirements(
        digests=dict(sorted(reader.digests.items())),
        is_floating=reader.is_floating,
        is_local=reader.is_local,
        is_editable=reader.is_editable,
        credentials=tuple(sorted(reader.credentials, key=lambda value: (-len(value), value))),
    )


def logical_lines(text: str) -> Iterator[str]:
    """The lines of a requirement file as pip reads them: continued ones joined, without comments and empty ones."""
    pending = ""
    for line in text.splitlines():
        if line.endswith("\\") and not line.lstrip().startswith("#"):
            pending += line[:-1]
            continue
        if whole := _without_comment(pending + line):
            yield whole
        pending = ""
    if whole := _without_comment(pending):
        yield whole


def _without_comment(line: str) -> str:
    at = line.find("#")
    while at > 0 and not line[at - 1].isspace():  # as in `…#egg=name`
        at = line.find("#", at + 1)
    return line[: at if at >= 0 else None].strip()


def _option(line: str) -> tuple[str, str]:
    """The option that a line begins with, by its long name, and its value."""
    try:
        words = shlex.split(line)
    except ValueError:
        words = line.split()
    first = words[0]
    if first.startswith("--"):
        name, equals, value = first.partition("=")
    else:
        name, value = _OPTIONS.get(first[:2], first[:2]), first[2:]
        equals = value
    return name, value if equals else "".join(words[1:2])


def _is_here(text: str) -> bool:
    return "://" not in text or text.startswith("file:")


def _local(text: str) -> str:
    return unquote(urlsplit(text).path) if text.startswith("file:") else text


def _normal(path: Path) -> Path:
    return Path(os.path.normpath(path.absolute()))


def digest(path: Path) -> str:
    """A digest of the content of a file, or of a directory as `trainbox run` would copy it."""
    total = hashlib.sha256()
    try:
        files = sorted(file for file in walk(path) if file.is_file()) if path.is_dir() else [path]
        for file in files:
            total.update(f"{os.path.relpath(file, path)}\0".encode(errors="surrogateescape"))
            with file.open("rb") as opened:
                total.update(hashlib.file_digest(opened, "sha256").digest())
    except OSError as error:  # pip says so where it needs it
        return f"{_ABSENT}: {error.strerror}"
    return total.hexdigest()
