"""What decides the outcome of `pip install`, read without pip."""

import hashlib
import time
from pathlib import Path

import pytest

from trainbox.errors import RequirementsError
from trainbox.local.overlays.requirement_files import Requirements, logical_lines, read_requirements

COMMIT = "0123456789abcdef" * 2 + "01234567"


def read(
    directory: Path, text: str, *, install: tuple[str, ...] = ("-r", "requirements.txt"), **env: str
) -> Requirements:
    (directory / "requirements.txt").write_text(text)
    return read_requirements(install, directory, env)


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_lines_are_read_as_pip_reads_them() -> None:
    text = "# all\na==1 # why\n\nb[x] \\\n  ==2\n  -r more.txt\ngit+https://e.org/c#egg=c\n# d \\\ne"
    assert list(logical_lines(text)) == ["a==1", "b[x]   ==2", "-r more.txt", "git+https://e.org/c#egg=c", "e"]


@pytest.mark.parametrize(
    "option", ["-r {}", "-r{}", "--requirement {}", "--requirement={}", "-c {}", "--constraint={}"]
)
def test_files_that_a_file_names_count(tmp_path: Path, option: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "one.txt").write_text("-r two.txt\n")
    (tmp_path / "sub" / "two.txt").write_text("b==1\n")
    found = read(tmp_path, option.format("sub/one.txt"))
    assert found.digests == {
        str(path): sha(path) for path in (tmp_path / "requirements.txt", *sorted((tmp_path / "sub").iterdir()))
    }
    assert not found.is_floating


@pytest.mark.parametrize(
    ("line", "floating"),
    [
        ("a==1", False),
        ("a[x,y] == 1.0+cpu ; python_version > '3'", False),
        ("a===1", False),
        ("a==1 --hash=sha256:00", False),
        ("a", True),
        ("a>=1", True),
        ("a==1.*", True),
        ("a==1,!=2", True),
        ("a @ git+https://example.org/a@main", True),
        (f"a @ git+https://example.org/a@{COMMIT}", False),
        ("https://example.org/a-1.0-py3-none-any.whl", True),
        ("https://example.org/a-1.0-py3-none-any.whl#sha256=" + "0" * 64, False),
        ("-r https://example.org/more.txt", True),
        ("--index-url https://example.org/simple", False),
    ],
)
def test_what_the_index_could_offer_otherwise_tomorrow_is_told(tmp_path: Path, line: str, floating: bool) -> None:
    assert read(tmp_path, line).is_floating == floating


def test_constraints_ask_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("b>1\n")
    assert not read(tmp_path, "a==1\n-c c.txt\n").is_floating


@pytest.mark.parametrize(
    "line", ["./lib", "lib/", "./lib[x]", "-e ./lib", "--editable=lib/", "lib @ file:./lib", "file:lib"]
)
def test_a_local_path_counts_with_all_its_files(tmp_path: Path, line: str) -> None:
    (tmp_path / "lib" / "src").mkdir(parents=True)
    (tmp_path / "lib" / "src" / "a.py").write_text("1")
    before = read(tmp_path, line)
    assert before.is_local
    assert before.is_editable == line.startswith(("-e", "--e"))
    (tmp_path / "lib" / "src" / "__pycache__").mkdir()
    (tmp_path / "lib" / "src" / "__pycache__" / "a.pyc").write_text("1")
    assert read(tmp_path, line) == before
    (tmp_path / "lib" / "src" / "a.py").write_text("2")
    assert read(tmp_path, line).digests != before.digests


def test_a_package_counts_with_all_its_files(tmp_path: Path) -> None:
    (tmp_path / "setup.py").write_text("1")
    before = read(tmp_path, "a==1", install=(".", "-r", "requirements.txt"))
    assert before.is_local
    assert before.is_floating
    (tmp_path / "train.py").write_text("2")
    assert read(tmp_path, "a==1", install=(".", "-r", "requirements.txt")) != before


@pytest.mark.parametrize("variable", ["", "wheels"])
def test_a_directory_of_archives_counts_with_their_names(tmp_path: Path, variable: str) -> None:
    (tmp_path / "wheels").mkdir()
    text = "a\n" if variable else "a\n-f wheels\n"
    before = read(tmp_path, text, PIP_FIND_LINKS=variable)
    (tmp_path / "wheels" / "a-1.0-py3-none-any.whl").write_text("")
    assert read(tmp_path, text, PIP_FIND_LINKS=variable) != before


def test_constraints_of_the_environment_count(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("b==1\n")
    assert str(tmp_path / "c.txt") in read(tmp_path, "a==1", PIP_CONSTRAINT="c.txt").digests


def test_what_is_absent_is_left_for_pip_to_say(tmp_path: Path) -> None:
    found = read(tmp_path, "-r gone.txt\n./gone\n--find-links gone\n")
    assert found.digests[str(tmp_path / "gone.txt")] == "absent: No such file or directory"


@pytest.mark.parametrize("line", ["-r requirements.txt", "-r more.txt", "-c more.txt"])
def test_a_file_that_includes_itself_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "more.txt").write_text("-r sub/../requirements.txt")
    with pytest.raises(RequirementsError, match=r"requirements\.txt includes itself: .* -> .*requirements\.txt"):
        read(tmp_path, line)


def test_a_file_that_two_others_name_is_no_circle(tmp_path: Path) -> None:
    for name, text in {"one.txt": "-r base.txt", "two.txt": "-r base.txt", "base.txt": "a==1"}.items():
        (tmp_path / name).write_text(text)
    assert len(read(tmp_path, "-r one.txt\n-r two.txt\n").digests) == 4


def test_what_urls_give_away_is_known(tmp_path: Path) -> None:
    text = "--index-url https://me:hunter22@example.org/simple\n--extra-index-url https://${TOKEN}@example.org\na==1\n"
    assert set(read(tmp_path, text, TOKEN="tok-1234").credentials) == {"hunter22", "tok-1234"}


@pytest.mark.parametrize(
    "piece", ["a", " ", "\\\n", "#", " #", "[", "a==", "://", "a:b@", "${", "-r ", "'", "-e", "a @ "]
)
def test_any_file_is_read_in_time_that_grows_with_its_length(tmp_path: Path, piece: str) -> None:
    def seconds(size: int) -> float:
        started = time.process_time()
        read(tmp_path, piece * (size // len(piece)))
        return time.process_time() - started

    quarter, whole = (min(seconds(size) for _ in range(3)) for size in (2**14, 2**16))
    assert whole <= 9 * quarter + 0.05
