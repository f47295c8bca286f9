"""What the kernel says about memory, for both versions of cgroups, inside and outside of a container."""

from pathlib import Path

import pytest

from trainbox.system.memory import Memory, read_available, read_memory

V2_EVENTS = "low 0\nhigh 0\nmax 31\noom 2\noom_kill {kills}\noom_group_kill 0\n"
V1_EVENTS = "oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n"


def membership(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "cgroup"
    path.write_text(content)
    return path


def write(directory: Path, **files: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name.replace("__", ".")).write_text(content)


@pytest.mark.parametrize("below", ["", "user.slice/job"])
@pytest.mark.parametrize(("limit", "found"), [("67108864\n", 67108864), ("max\n", None)])
def test_version_2_is_read(tmp_path: Path, below: str, limit: str, found: int | None) -> None:
    root = tmp_path / "sys"
    write(root / below, memory__events=V2_EVENTS.format(kills=3), memory__max=limit)
    assert read_memory(root, membership(tmp_path, f"0::/{below}\n")) == Memory(3, found)


@pytest.mark.parametrize("below", ["", "docker/abc"])
@pytest.mark.parametrize(("limit", "found"), [("67108864\n", 67108864), ("9223372036854771712\n", None)])
def test_version_1_is_read(tmp_path: Path, below: str, limit: str, found: int | None) -> None:
    root = tmp_path / "sys"
    write(root / "memory" / below, memory__oom_control=V1_EVENTS.format(kills=3), memory__limit_in_bytes=limit)
    lines = f"12:cpu,cpuacct:/x\n4:memory:/{below}\n0::/\n"
    assert read_memory(root, membership(tmp_path, lines)) == Memory(3, found)


def test_in_a_container_its_own_cgroup_is_the_root_of_the_mount(tmp_path: Path) -> None:
    root = tmp_path / "sys"
    write(root / "memory", memory__oom_control=V1_EVENTS.format(kills=1), memory__limit_in_bytes="1024")
    assert read_memory(root, membership(tmp_path, "4:memory:/docker/abc\n")) == Memory(1, 1024)


def test_an_old_kernel_counts_no_kills(tmp_path: Path) -> None:
    root = tmp_path / "sys"
    write(root / "memory", memory__oom_control="oom_kill_disable 0\nunder_oom 0\n")
    assert read_memory(root, membership(tmp_path, "4:memory:/\n")) == Memory(None, None)


def test_where_there_are_no_cgroups_nothing_is_known(tmp_path: Path) -> None:
    assert read_memory(tmp_path / "none", tmp_path / "none") == Memory(None, None)


@pytest.mark.parametrize(
    ("files", "available"),
    [
        ({}, 4_000 * 1024),
        ({"memory.max": "1000000", "memory.current": "700000", "memory.stat": "anon 1\ninactive_file 200000"}, 500_000),
        ({"memory.max": "max", "memory.current": "700000"}, 4_000 * 1024),
        ({"memory.max": "1000", "memory.current": "7000"}, 0),
        (
            {"memory.limit_in_bytes": "9000", "memory.usage_in_bytes": "8000", "memory.stat": "total_inactive_file 1"},
            1001,
        ),
    ],
)
def test_what_is_available_is_what_the_host_and_the_container_have(
    tmp_path: Path, files: dict[str, str], available: int
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:    4000 kB\n")
    assert read_available(tmp_path, membership(tmp_path, "0::/\n"), tmp_path / "meminfo") == available
