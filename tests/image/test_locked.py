"""What a build installs when an index offers something else: a server on this machine, the build's own script."""

import base64
import functools
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools" / "image" / "from-lock"

pytestmark = pytest.mark.process


class Index(NamedTuple):
    """A package index on this machine."""

    url: str
    files: Path

    def offer(self, name: str, content: bytes) -> None:
        """Add a file to the page of its project."""
        project = self.files / name.partition("-")[0]
        project.mkdir(exist_ok=True)
        (project / name).write_bytes(content)
        links = [f'<a href="{path.name}">{path.name}</a>' for path in project.iterdir() if path.name != "index.html"]
        (project / "index.html").write_text("\n".join(sorted(links)))


class Quiet(SimpleHTTPRequestHandler):
    """Serves a directory without a word."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def new_index(tmp_path: Path) -> Iterator[Mapping[str, Index]]:
    """Two indexes: an honest one, and one of somebody else."""
    found, servers = {}, []
    for name in ("honest", "evil"):
        files = tmp_path / name
        files.mkdir()
        server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(files)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        found[name] = Index(f"http://127.0.0.1:{server.server_port}/", files)
    yield found
    for server in servers:
        server.shutdown()
        server.server_close()


def wheel(version: str, code: str) -> bytes:
    """A wheel of the package `harmless`."""
    info = f"harmless-{version}.dist-info"
    files = {
        "harmless.py": code,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: harmless\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {
        name: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        for name, text in files.items()
    }
    record = "".join(f"{name},sha256={digests[name]},{len(text)}\n" for name, text in files.items())
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            archive.writestr(zipfile.ZipInfo(name), text)
    return written.getvalue()


def sdist(version: str, setup: str) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as archive:
        member = tarfile.TarInfo(f"harmless-{version}/setup.py")
        member.size = len(setup)
        archive.addfile(member, io.BytesIO(setup.encode()))
    return written.getvalue()


HONEST = wheel("1.0", "WHO = 'honest'\n")
EVIL = "WHO = 'evil'\n"


def pip_environment(**variables: str) -> dict[str, str]:
    """Nothing of this machine's own pip, whose settings may name wheels and indexes."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return {
        **kept,
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_CACHE_DIR": "1",
        **variables,
    }


def lock(directory: Path, version: str, content: bytes) -> Path:
    written = directory / "lock.txt"
    written.write_text(
        f"harmless=={version} \\\n    --hash=sha256:{hashlib.sha256(content).hexdigest()}\n    # via all\n"
    )
    return written


def install(locked: Path, into: Path, *options: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, sys.executable, "install", locked, "--target", into, *options],
        env=pip_environment(**variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def who(directory: Path) -> str:
    return (directory / "harmless.py").read_text()


def test_a_second_index_that_offers_a_higher_build_of_a_pinned_version_gets_nothing_in(
    new_index: Mapping[str, Index], tmp_path: Path
) -> None:
    """F3 of the security review: `==` ignores local versions, and they sort higher."""
    honest, evil = new_index["honest"], new_index["evil"]
    honest.offer("harmless-1.0-py3-none-any.whl", HONEST)
    evil.offer("harmless-1.0+evil-py3-none-any.whl", wheel("1.0+evil", EVIL))
    indexes = {"PIP_INDEX_URL": honest.url, "PIP_EXTRA_INDEX_URL": evil.url}
    # The control: pinned by version alone, the stranger's package is what is installed.
    pinned = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tmp_path / "pinned"), "harmless==1.0"]
    subprocess.run(pinned, env=pip_environment(**indexes), check=True)
    assert who(tmp_path / "pinned") == EVIL
    locked = lock(tmp_path, "1.0", HONEST)
    answer = install(locked, tmp_path / "locked", **indexes)
    assert not (tmp_path / "locked" / "harmless.py").exists() or who(tmp_path / "locked") != EVIL
    if answer.returncode:
        assert "DO NOT MATCH THE HASHES" in answer.stderr
    alone = install(locked, tmp_path / "alone", PIP_INDEX_URL=honest.url)
    assert alone.returncode == 0, alone.stderr
    assert who(tmp_path / "alone") == "WHO = 'honest'\n"


def test_other_bytes_under_the_same_name_are_refused_from_an_index_and_from_a_wheelhouse(
    new_index: Mapping[str, Index], tmp_path: Path
) -> None:
    evil = new_index["evil"]
    evil.offer("harmless-1.0-py3-none-any.whl", wheel("1.0", EVIL))
    locked = lock(tmp_path, "1.0", HONEST)
    wheelhouse = ("--no-index", "--find-links", evil.files / "harmless")
    for answer in (
        install(locked, tmp_path / "out", PIP_INDEX_URL=evil.url),
        install(locked, tmp_path / "out", *wheelhouse),
    ):
        assert answer.returncode != 0
        assert "DO NOT MATCH THE HASHES" in answer.stderr
        assert not (tmp_path / "out").exists()


def test_no_code_of_a_source_distribution_runs_even_if_its_hash_is_right(
    new_index: Mapping[str, Index], tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    source = sdist("1.0", f"open({str(ran)!r}, 'w')\n")
    new_index["evil"].offer("harmless-1.0.tar.gz", source)
    answer = install(lock(tmp_path, "1.0", source), tmp_path / "out", PIP_INDEX_URL=new_index["evil"].url)
    assert answer.returncode != 0
    assert "No matching distribution found for harmless==1.0" in answer.stderr
    assert not ran.exists()


def test_what_is_pytorchs_comes_from_its_index_alone_and_what_is_not_never_does(
    new_index: Mapping[str, Index], tmp_path: Path
) -> None:
    honest, torch = new_index["honest"], new_index["evil"]
    build = wheel("1.0+cpu", "WHO = 'pytorch'\n")
    torch.offer("harmless-1.0+cpu-py3-none-any.whl", build)
    torch.offer("harmless-1.0-py3-none-any.whl", HONEST)
    indexes = {"PIP_INDEX_URL": honest.url, "TORCH_CPU_INDEX": torch.url}
    answer = install(lock(tmp_path, "1.0+cpu", build), tmp_path / "torch", **indexes)
    assert answer.returncode == 0, answer.stderr
    assert who(tmp_path / "torch") == "WHO = 'pytorch'\n"
    answer = install(lock(tmp_path, "1.0", HONEST), tmp_path / "other", **indexes)
    assert "No matching distribution found for harmless==1.0" in answer.stderr
