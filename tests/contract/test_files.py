"""What somebody else has put there: a link, a FIFO, a set-user-ID program, a tree deeper than Python calls."""

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from trainbox.contract.failures.diagnosis import Diagnosis
from trainbox.contract.failures.failure import compose, read_failure, release_failure, reserve_failure, write_failure
from trainbox.files import disarm, read_below, read_regular, remove_tree, walk_below

KEY = b"KEY-OF-THE-HOST-4711"
#: Deeper than Python calls; as a path longer than Linux allows.
DEEP = 2100


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(KEY)
    path.chmod(0o600)
    return path


def link(path: Path, secret: Path) -> None:
    path.symlink_to(secret)


def fifo(path: Path, _secret: Path) -> None:
    os.mkfifo(path)


def directory(path: Path, _secret: Path) -> None:
    path.mkdir()


def bound(path: Path, _secret: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def dangling(path: Path, _secret: Path) -> None:
    path.symlink_to("nowhere")


ODD = [link, fifo, directory, dangling]
Odd = Callable[[Path, Path], None]


@pytest.mark.parametrize("odd", ODD)
def test_only_a_regular_file_is_read(tmp_path: Path, secret: Path, odd: Odd) -> None:
    (tmp_path / "output").mkdir()
    odd(tmp_path / "output" / "failure", secret)
    with pytest.raises(OSError, match=r"."):
        read_regular(tmp_path / "output" / "failure", 100)
    with pytest.raises(OSError, match=r"."):
        read_below(tmp_path, "output/failure", 100)


@pytest.mark.process
def test_a_socket_is_none(tmp_path: Path, secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket has at most 107 bytes
    bound(Path("failure"), secret)
    with pytest.raises(OSError, match=r"."):
        read_regular(Path("failure"), 100)


def test_a_link_on_the_way_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "failure").write_bytes(KEY)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "output").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"."):
        read_below(tmp_path / "tree", "output/failure", 100)


@pytest.mark.parametrize(("size", "read"), [(99, 99), (100, 100), (101, 100)])
def test_no_more_is_read_than_is_wanted(tmp_path: Path, size: int, read: int) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"x" * size)
    assert read_below(tmp_path, "a/file", 100) == b"x" * read
    assert read_regular(tmp_path / "a" / "file", 100) == b"x" * read


# -- the failure file --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("odd", [link, fifo, dangling])
def test_what_is_no_file_gives_way_to_the_reason_and_nothing_else_is_touched(
    tmp_path: Path, secret: Path, odd: Odd
) -> None:
    failure = tmp_path / "output" / "failure"
    reserve_failure(failure)
    odd(failure, secret)
    with pytest.raises(OSError, match=r"."):
        read_failure(failure)
    assert write_failure(failure, compose(Diagnosis("script", "why", 1)))
    assert (failure.read_text(), failure.is_symlink()) == ("why", False)
    assert secret.read_bytes() == KEY
    assert not (tmp_path / "output" / "nowhere").exists()


@pytest.mark.parametrize("odd", [link, fifo, dangling])
def test_what_was_reserved_and_is_no_file_any_more_is_not_written_through(
    tmp_path: Path, secret: Path, odd: Odd
) -> None:
    failure = tmp_path / "output" / "failure"
    reserve_failure(failure)
    release_failure(failure)
    odd(failure.with_name(".failure.part"), secret)
    assert write_failure(failure, "why")
    assert failure.read_text() == "why"
    odd(failure.with_name(".failure.part"), secret)
    reserve_failure(failure)
    assert secret.read_bytes() == KEY
    assert [path.name for path in failure.parent.iterdir()] == [".failure.part"]


# -- trees -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """A directory with a file at the bottom of very many; whoever asks for it removes it, as pytest could not."""
    root = tmp_path / "deep"
    root.mkdir()
    here = os.open(root, os.O_RDONLY)
    for _ in range(DEEP):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    return root


def test_a_tree_of_any_depth_is_removed(deep: Path) -> None:
    (deep / "beside").mkdir()
    (deep / "beside" / "file").touch()
    remove_tree(deep)
    assert not deep.exists()


def test_a_tree_deeper_than_a_path_is_long_is_an_error_and_no_crash(deep: Path) -> None:
    try:
        with pytest.raises(OSError, match="File name too long"):
            list(walk_below(deep))
    finally:
        remove_tree(deep)


def test_a_link_in_a_tree_is_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (tmp_path / "tree" / "a").mkdir(parents=True)
    (tmp_path / "tree" / "a" / "link").symlink_to(tmp_path / "precious")
    remove_tree(tmp_path / "tree")
    assert (tmp_path / "precious" / "file").exists()
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=r"."):
        remove_tree(tmp_path / "link")
    assert (tmp_path / "precious" / "file").exists()


def test_a_tree_that_was_closed_to_us_is_removed(tmp_path: Path) -> None:
    (tmp_path / "tree" / "a" / "b").mkdir(parents=True)
    (tmp_path / "tree" / "a" / "b" / "file").touch()
    for path in ("tree/a/b", "tree/a", "tree"):
        (tmp_path / path).chmod(0)
    remove_tree(tmp_path / "tree")
    assert not (tmp_path / "tree").exists()


def test_files_lose_what_lets_them_run_as_their_owner(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir()
    for name, mode in {"closed/suid": 0o4755, "sgid": 0o2755, "both": 0o6711, "plain": 0o640}.items():
        (tmp_path / name).touch()
        (tmp_path / name).chmod(mode)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o2775)  # what is made in it gets its group: no right
    (tmp_path / "closed").chmod(0)
    (tmp_path / "link").symlink_to("/usr/bin/passwd")
    disarm(tmp_path)
    found = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in tmp_path.rglob("*") if not path.is_symlink()}
    assert found == {"closed": 0o700, "suid": 0o755, "sgid": 0o755, "both": 0o711, "plain": 0o640, "shared": 0o2775}
