"""The environment of a local job with requirements: that of `trainbox run`, and over it what the job asks for.

An overlay is a virtual environment whose `.pth` file adds the site directories of the environment that runs trainbox.
So pip finds there what is installed already, and installs only what is missing or asked for in another version; the
rehearsal runs the versions of the environment. Overlays are kept in the user's cache directory and shared.
"""

import fcntl
import hashlib
import os
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from trainbox.local.overlays.requirement_files import Requirements, digest, read_requirements
from trainbox.local.request import RunRequest
from trainbox.local.results.record import WORK
from trainbox.supervisor.requirements import OVERLAY_MARKER, find_install

#: What the index offers for a requirement without a version may change: after a day pip is asked again.
SECONDS_OF_FLOATING = 24 * 3600.0
#: Increased when overlays of an earlier trainbox can no longer be used.
_FORMAT = 1
_KEY_DIGITS = 16
#: Where pip would install to, or from which interpreter: decided here.
PLACES_OF_PIP = frozenset({"PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PIP_PYTHON", "PIP_DRY_RUN"})
#: Settings of pip that change neither what it finds nor what it builds.
_INDIFFERENT = PLACES_OF_PIP | {"PIP_CACHE_DIR", "PIP_NO_INPUT", "PIP_DISABLE_PIP_VERSION_CHECK", "PIP_PROGRESS_BAR"}
_METADATA = (".dist-info", ".egg-info", ".egg-link")


class Overlay(msgspec.Struct, frozen=True, kw_only=True):
    """One virtual environment, ready or to be built."""

    #: The prefix of its interpreter. A link to where it was built, which appears once all is installed.
    path: Path
    #: The arguments of `pip install`.
    install: tuple[str, ...]
    #: What is below it.
    sites: tuple[str, ...]
    #: The prefix of the environment below it.
    parent: str
    #: Whether something is built from local files, which pip must not do in the source itself.
    is_local: bool
    is_editable: bool
    #: Whether it was ready when it was looked for.
    is_found: bool
    #: Why it is kept in the result's directory and not shared; empty where it is shared.
    why_apart: str = ""

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.path / "bin" / "python"

    @property
    def lock(self) -> Path:
        """Held alone while it is built or removed, shared while a job uses it."""
        return self.path.with_name(f"{self.path.name}.lock")

    def is_ready(self) -> bool:
        """Whether it is there, and whole."""
        return built_at(self.path) is not None


class Order(msgspec.Struct, frozen=True):
    """What to build, for which job."""

    overlay: Overlay
    #: The source of the job.
    directory: Path
    failure_file: Path

    def encoded(self) -> str:
        """The argument of `build_overlay`."""
        return msgspec.json.encode(self, enc_hook=str).decode()


class _Marker(msgspec.Struct):
    """The content of `OVERLAY_MARKER`."""

    built: float


def write_marker(path: Path, now: float) -> None:
    """Say in a prefix that it is an overlay, and when it was built."""
    (path / OVERLAY_MARKER).write_bytes(msgspec.json.encode(_Marker(now)))


def built_at(path: Path) -> float | None:
    """When an overlay was built; `None` where it is absent, not whole, or its Python is gone."""
    try:
        marker = msgspec.json.decode((path / OVERLAY_MARKER).read_bytes(), type=_Marker)
    except (OSError, msgspec.MsgspecError):
        return None
    return marker.built if (path / "bin" / "python").exists() else None


def find_overlay(request: RunRequest, *, fresh: bool = False) -> Overlay | None:
    """The overlay for a request: a valid one if there is one, else where one is to be built.

    Args:
        request: What was asked for.
        fresh: Build a new one in any case.

    Returns:
        `None` where the job runs in containers, or asks for nothing to be installed.

    Raises:
        RequirementsError: A requirement file includes itself.
    """
    if request.source is None or request.isolation.image is not None:
        return None
    directory = request.source.directory
    is_module = request.module is not None
    install = find_install(request.script, directory, is_module=is_module, installs=request.installs)
    if not install:
        return None
    variables = {**request.inherited, **request.env}
    requirements = read_requirements(install, directory, variables)
    sites = tuple(_sites())
    key = _key(install, requirements, sites, variables)
    cache, why_apart = _find_cache(request.inherited)
    cache = request.out / WORK if cache is None else cache
    oldest = request.started.timestamp() - SECONDS_OF_FLOATING if requirements.is_floating else 0.0
    path = _find_place(cache, key, oldest=oldest, fresh=fresh)
    return Overlay(
        path=path,
        is_found=built_at(path) is not None,
        install=install,
        sites=sites,
        parent=sys.prefix,
        is_local=requirements.is_local,
        is_editable=requirements.is_editable,
        why_apart=why_apart,
    )


def _sites() -> Iterable[str]:
    """The site directories of this interpreter; the user's own are not seen from within a virtual environment."""
    own = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    return [path for path in dict.fromkeys([*own, *site.getsitepackages()]) if Path(path).is_dir()]


def _key(
    install: tuple[str, ...], requirements: Requirements, sites: Iterable[str], variables: Mapping[str, str]
) -> str:
    """A digest of all that decides what pip would install: no URL, and so no password, can be read from it."""
    decides = {
        "format": _FORMAT,
        "python": [sys.version, sys.executable, sys.base_prefix, sysconfig.get_platform()],
        "sites": list(sites),
        "installed": sorted(_installed()),
        "install": install,
        "files": requirements.digests,
        "variables": {name: variables[name] for name in sorted(variables) if _counts(name)},
        "configuration": {str(path): digest(path) for path in _configurations(variables)},
    }
    return hashlib.sha256(msgspec.json.encode(decides)).hexdigest()[:_KEY_DIGITS]


def _counts(name: str) -> bool:
    return (name.startswith("PIP_") and name not in _INDIFFERENT) or name == "PYTHONPATH"


def _installed() -> Iterable[str]:
    """Name and version of every distribution that this interpreter finds, from the names of their directories."""
    for directory in dict.fromkeys(sys.path[1:]):  # the first is that of the program
        try:
            names = os.listdir(directory)  # noqa: PTH208 - names, not paths
        except OSError:
            continue
        yield from (name for name in names if name.endswith(_METADATA))


def _configurations(variables: Mapping[str, str]) -> list[Path]:
    """The files that pip reads its settings from."""
    home = Path(variables.get("HOME", "/"))
    own = Path(variables.get("XDG_CONFIG_HOME") or home / ".config")
    shared = [Path(path, "pip") for path in (variables.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")]
    directories = [*shared, Path("/etc"), home / ".pip", own / "pip", Path(sys.prefix)]
    named = [Path(variables["PIP_CONFIG_FILE"])] if variables.get("PIP_CONFIG_FILE") else []
    return [path for path in [*(each / "pip.conf" for each in directories), *named] if path.is_file()]


def _find_cache(variables: Mapping[str, str]) -> tuple[Path | None, str]:
    """Where overlays are kept; or why not there."""
    home = variables.get("XDG_CACHE_HOME") or (f"{variables['HOME']}/.cache" if variables.get("HOME") else "")
    if not home.startswith("/"):
        return None, "neither XDG_CACHE_HOME nor HOME names a directory"
    cache = Path(home, "trainbox", "environments")
    try:
        existing = next(path for path in (cache, *cache.parents) if path.exists())
        if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
            return cache, ""
    except OSError as error:
        return None, f"{cache}: {error.strerror}"
    return None, f"{existing} cannot be written"


def _find_place(cache: Path, key: str, *, oldest: float, fresh: bool) -> Path:
    """The newest overlay of a key; the one after it where that is too old or not wanted."""
    newest = 0
    for path in cache.glob(f"{key}-*[0-9]") if cache.is_dir() else ():
        number = path.name.removeprefix(f"{key}-")
        if number.isdecimal() and built_at(path) is not None:
            newest = max(newest, int(number))
    path = cache / f"{key}-{newest}"
    built = built_at(path)
    return cache / f"{key}-{newest + 1}" if built is None or fresh or built < oldest else path


@contextmanager
def in_use(overlay: Overlay) -> Iterator[bool]:
    """Keep an overlay from being removed while the block runs.

    Yields:
        Whether it is ready; where it is not, or is being removed, nothing is held.

    Raises:
        OSError: There is no lock.
    """
    with overlay.lock.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        ready = overlay.is_ready()
        if ready:
            (overlay.path / OVERLAY_MARKER).touch()  # the time of its last use
        else:
            fcntl.flock(lock, fcntl.LOCK_UN)
        yield ready
