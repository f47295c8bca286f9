"""Every way a program can come and be started, with real archives, a real S3 client and a real pip."""

import contextlib
import hashlib
import http.server
import io
import os
import shutil
import signal
import socket
import sys
import sysconfig
import tarfile
import textwrap
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import pytest

from tests.support.trees import Tree, wheel
from tests.support.waiting import eventually
from trainbox.local.backends import namespace

pytestmark = pytest.mark.process

PRINTS = "import sys\nprint('ran', *sys.argv[1:])\n"


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    with Tree(tmp_path / "ml") as built:
        yield built


def packed(files: Mapping[str, str]) -> bytes:
    """A `sourcedir.tar.gz` with these files."""
    with io.BytesIO() as buffer:
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content.encode())
                tar.addfile(info, io.BytesIO(content.encode()))
        return buffer.getvalue()


SOURCE = packed({"train.py": PRINTS, "lib/__init__.py": ""})

# -- where the code comes from -----------------------------------------------------------------------------------------


class _Files(http.server.BaseHTTPRequestHandler):
    """As much of S3, and of an index of packages, as one download needs."""

    def do_GET(self) -> None:
        body = self.files().get(self.path.partition("?")[0])
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"")))
        self.send_header("Cache-Control", "max-age=600")
        self.end_headers()
        self.wfile.write(body or b"")

    def files(self) -> dict[str, bytes]:
        wheels = {"/dependency-1.0-py3-none-any.whl": wheel("dependency", "words = 'installed'\n")}
        return {"/bucket/jobs/sourcedir.tar.gz": SOURCE, **wheels}

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Files) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def credentials(endpoint: str, variable: str = "S3_ENDPOINT_URL") -> dict[str, str]:
    return {
        variable: endpoint,
        "AWS_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "of-the-test",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
    }


@pytest.mark.parametrize("variable", ["S3_ENDPOINT_URL", "AWS_ENDPOINT_URL"])
def test_code_from_s3_wins_over_what_lies_in_the_code_directory(tree: Tree, server: str, variable: str) -> None:
    pytest.importorskip("boto3")
    tree.program("print('stale')")
    tree.hyperparameters(
        sagemaker_program='"train.py"', sagemaker_submit_directory='"s3://bucket/jobs/sourcedir.tar.gz"', eta=0.1
    )
    run = tree.run(**credentials(server, variable))
    assert (run.code, run.stdout) == (0, b"ran --eta 0.1\n"), run.log
    assert "trainbox: downloading s3://bucket/jobs/sourcedir.tar.gz\n" in run.log
    assert tree.leftovers() == []


def test_an_object_that_is_not_there_is_said_with_what_the_role_needs(tree: Tree, server: str) -> None:
    pytest.importorskip("boto3")
    tree.program("print('old')")
    run = tree.run(SAGEMAKER_SUBMIT_DIRECTORY="s3://bucket/none.tar.gz", **credentials(server))
    assert run.code == 3
    assert run.failure is not None
    assert run.failure.startswith("ClientError: s3://bucket/none.tar.gz cannot be downloaded: ")
    assert "hint: the role of the job needs s3:GetObject" in run.failure
    assert (tree.code / "train.py").read_text() == "print('old')"
    assert tree.leftovers() == []


def test_sigterm_during_a_download_ends_the_job_with_143(tree: Tree) -> None:
    pytest.importorskip("boto3")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = tree.start(
            {
                "SAGEMAKER_SUBMIT_DIRECTORY": "s3://bucket/a.tar.gz",
                **credentials(f"http://127.0.0.1:{silent.getsockname()[1]}"),
            }
        )
        connection, _ = silent.accept()
        with connection:
            connection.recv(10)
            process.send_signal(signal.SIGTERM)
            run = tree.finish(process)
    assert run.code == 143
    assert run.failure == "ClientError: stopped by SIGTERM before the script was started"
    assert tree.leftovers() == []


@pytest.mark.parametrize(
    ("location", "stored"),
    [
        ("/opt/ml/input/data/code/sourcedir.tar.gz", "input/data/code/sourcedir.tar.gz"),
        ("{root}/elsewhere/source.tar.gz", "elsewhere/source.tar.gz"),
        ("file://{root}/elsewhere/source.tar.gz", "elsewhere/source.tar.gz"),
    ],
)
def test_code_from_a_local_archive(tree: Tree, location: str, stored: str) -> None:
    tree.program("print('stale')").write("code/stale.py", "").write(stored, SOURCE)
    run = tree.run(SAGEMAKER_SUBMIT_DIRECTORY=location.format(root=tree.root))
    assert (run.code, run.stdout) == (0, b"ran\n"), run.log
    assert not (tree.code / "stale.py").exists()


def test_code_from_a_directory_is_copied(tree: Tree) -> None:
    tree.program("print('stale')").write("source/train.py", PRINTS)
    run = tree.run(SAGEMAKER_SUBMIT_DIRECTORY=str(tree.root / "source"))
    assert (run.code, run.stdout) == (0, b"ran\n"), run.log


@pytest.mark.parametrize("files", [{"train.py": PRINTS, "lib.py": ""}, {"sourcedir.tar.gz": SOURCE}])
def test_code_from_the_channel_code(tree: Tree, files: dict[str, str | bytes]) -> None:
    tree.channel("code", files)
    run = tree.run()
    assert (run.code, run.stdout) == (0, b"ran\n"), run.log
    assert (tree.root / "input/data/code" / next(iter(files))).exists()


def test_code_in_its_place_is_run_there(tree: Tree) -> None:
    tree.program("import os\nprint(os.getcwd(), os.environ['PYTHONPATH'])\n")
    run = tree.run(SAGEMAKER_SUBMIT_DIRECTORY="/opt/ml/code")
    assert run.stdout.decode() == f"{tree.code} {tree.code}\n"


@pytest.mark.parametrize("bad", ["../train.py", "/tmp/train.py"])
def test_an_unsafe_archive_fails_the_job_and_changes_nothing(tree: Tree, bad: str) -> None:
    tree.program("print('old')").write("source.tar.gz", packed({"train.py": PRINTS, bad: ""}))
    run = tree.run(SAGEMAKER_SUBMIT_DIRECTORY=str(tree.root / "source.tar.gz"))
    assert run.code == 3
    assert run.failure == (
        f"ClientError: the archive {tree.root}/source.tar.gz is refused: its member {bad!r} lies outside of it"
    )
    assert (tree.code / "train.py").read_text() == "print('old')"
    assert tree.leftovers() == []


@pytest.mark.parametrize("missing", [1, 20, 100])
def test_a_truncated_archive_fails_the_job_and_changes_nothing(tree: Tree, missing: int) -> None:
    tree.program("print('old')").write("source.tar.gz", SOURCE[:-missing])
    run = tree.run(SAGEMAKER_SUBMIT_DIRECTORY=str(tree.root / "source.tar.gz"))
    assert run.code == 3
    assert run.failure is not None
    assert run.failure.startswith(f"ClientError: the archive {tree.root}/source.tar.gz cannot be unpacked: ")
    assert (tree.code / "train.py").read_text() == "print('old')"
    assert tree.leftovers() == []


# -- how it is started -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train.py", "src/deep/train.py", "-c.py", "two words.py", "$(touch pwned).py"])
def test_a_python_script_of_any_name(tree: Tree, name: str) -> None:
    tree.program("import lib\n" + PRINTS, name).write("code/lib.py", "").hyperparameters(eta=0.1)
    run = tree.run(SAGEMAKER_PROGRAM=name)
    assert (run.code, run.stdout) == (0, b"ran --eta 0.1\n"), run.log
    assert not list(tree.root.rglob("pwned"))


@pytest.mark.parametrize("mode", [0o644, 0o755])
@pytest.mark.parametrize("first", ["#!/bin/sh\n", ""])
def test_a_shell_script_gets_the_arguments_as_they_are(tree: Tree, first: str, mode: int) -> None:
    tree.program(f'{first}printf "<%s>" "$0" "$@"; exit 5', "run.sh", mode=mode).hyperparameters(text="two  $HOME *")
    run = tree.run(SAGEMAKER_PROGRAM="run.sh")
    assert (run.code, run.stdout) == (5, b"<./run.sh><--text><two  $HOME *>")


def test_any_executable_is_a_program(tree: Tree) -> None:
    tree.program("#!/bin/echo said by\n", "program")
    run = tree.hyperparameters(eta=0.1).run(SAGEMAKER_PROGRAM="program")
    assert (run.code, run.stdout) == (0, b"said by ./program --eta 0.1\n"), run.log


def test_a_bundled_script_runs_by_its_name(tree: Tree) -> None:
    run = tree.hyperparameters(trainbox_script="xgbost").run(SAGEMAKER_PROGRAM="")
    assert run.code == 3
    assert run.failure is not None
    assert run.failure.startswith("ClientError: there is no bundled script 'xgbost'")
    assert "xgboost_train" in run.failure


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (
            "trian.py",
            "there is no program 'trian.py' in {code} - did you mean 'train.py'?\nhint: found there: train.py",
        ),
        ("../train.py", "the program '../train.py' lies outside its code in {code}\nhint: name it as 'train.py'"),
        ("/bin/sh", "the program '/bin/sh' lies outside its code in {code}\nhint: name it as 'train.py'"),
        ("", "the job names no program to run\nhint: set the hyperparameter sagemaker_program"),
    ],
)
def test_a_program_that_cannot_be_found_is_said(tree: Tree, program: str, message: str) -> None:
    run = tree.program(PRINTS).run(SAGEMAKER_PROGRAM=program)
    assert run.code == 3
    assert run.failure is not None
    assert run.failure.startswith("ClientError: " + message.format(code=tree.code))
    assert run.stdout == b""


def test_a_program_the_kernel_cannot_start_is_said(tree: Tree) -> None:
    tree.program(b"\x7fELF but nothing more", "program", mode=0o755)
    run = tree.run(SAGEMAKER_PROGRAM="program")
    assert run.code == 3
    assert run.failure == f"ClientError: './program' cannot be started in {tree.code}: Exec format error"


def test_a_first_host_that_stays_unknown_fails_the_job_and_is_named(tree: Tree) -> None:
    tree.program(PRINTS).hosts("algo-1.invalid", "localhost", current="localhost")
    run = tree.run(TRAINBOX_PEER_TIMEOUT_SECONDS="0.2")
    assert run.code == 5
    assert run.failure is not None
    assert run.failure.startswith(
        "AlgorithmError: after 0.2 s these hosts still have no address: algo-1.invalid\nhint:"
    )
    assert run.stdout == b""


def test_the_address_of_a_host_that_nobody_dials_is_not_waited_for(tree: Tree) -> None:
    tree.program("print('ran')").hosts("localhost", "algo-2.invalid")
    run = tree.run(TRAINBOX_PEER_TIMEOUT_SECONDS="0.2")
    assert (run.code, run.stdout) == (0, b"ran\n"), run.log


# -- what it asks pip for ----------------------------------------------------------------------------------------------


def with_requirements(tree: Tree) -> dict[str, str]:
    """A requirements.txt that needs no network, and an environment that keeps what is installed in the tree."""
    tree.write("wheels/dependency-1.0-py3-none-any.whl", wheel("dependency", "words = 'installed'\n"))
    tree.write("code/requirements.txt", "--no-index\n--find-links ../wheels\ndependency\n")
    site = str(tree.root / "site")
    return {"PIP_TARGET": site, "PYTHONPATH": site, "PIP_NO_CACHE_DIR": "1", "PIP_ROOT_USER_ACTION": "ignore"}


def test_requirements_are_installed_once_for_two_processes(tree: Tree) -> None:
    env = with_requirements(tree)
    tree.program("import dependency\nprint(dependency.words)\n").hyperparameters(processes_per_host=2)
    run = tree.run(**env)
    assert run.code == 0, run.log
    assert run.stdout.decode().splitlines().count("installed") == 2
    assert run.stdout.count(b"Successfully installed dependency-1.0") == 1


def test_requirements_are_installed_for_a_shell_script_and_from_beside_odd_modules(tree: Tree) -> None:
    """A user's `queue.py` must not become pip's."""
    env = with_requirements(tree)
    tree.write("code/queue.py", "raise RuntimeError('the wrong queue')")
    tree.program("python3 -c 'pass' ; ls \"$PIP_TARGET\"", "run.sh")
    run = tree.run(SAGEMAKER_PROGRAM="run.sh", **env)
    assert run.code == 0, run.log
    assert b"\ndependency.py\n" in run.stdout


def test_pip_keeps_its_cache_in_the_warm_pool(tree: Tree, server: str) -> None:
    env = with_requirements(tree)
    del env["PIP_NO_CACHE_DIR"]
    env["PIP_TRUSTED_HOST"] = "127.0.0.1"  # what comes from elsewhere over plain HTTP pip does not cache, nor files
    tree.program("").write("code/requirements.txt", f"{server}/dependency-1.0-py3-none-any.whl\n")
    run = tree.run(**env, SAGEMAKER_MANAGED_WARMPOOL_CACHE_DIRECTORY=str(tree.root / "cache"))
    assert run.code == 0, run.log
    assert [path for path in (tree.root / "cache/pip").rglob("*") if path.is_file()]


def test_what_pip_cannot_find_is_said_in_its_own_words(tree: Tree) -> None:
    env = with_requirements(tree)
    tree.program("print('never')").write("code/requirements.txt", "--no-index\ndependency==2.0\n")
    run = tree.run(**env)
    assert run.code == 4
    assert run.failure is not None
    assert run.failure.startswith(
        f"ClientError: pip could not install -r requirements.txt in {tree.code}: Could not find a version that"
        " satisfies the requirement dependency==2.0"
    )
    assert "with network isolation there is no index" in run.failure
    assert run.stdout.count(b"never") == 0


def test_without_its_hash_nothing_is_installed_where_hashes_are_asked_for(tree: Tree) -> None:
    env = with_requirements(tree)
    tree.program("print('ran')")
    tree.write("code/requirements.txt", "--no-index\n--find-links ../wheels\ndependency==1.0\n")
    run = tree.run(**env, TRAINBOX_REQUIREMENTS="hashes")
    assert (run.code, b"ran\n" in run.stdout) == (4, False), run.log
    assert "Hashes are required in --require-hashes mode" in (run.failure or "")


def test_no_code_of_a_build_runs_where_wheels_are_asked_for(tree: Tree) -> None:
    env = with_requirements(tree)
    build = "open('../../../built', 'w').close()\nraise SystemExit('a build ran')\n"
    tree.write("wheels/source-1.0.tar.gz", packed({"source-1.0/setup.py": build}))
    tree.program("print('ran')").write("code/requirements.txt", "--no-index\n--find-links ../wheels\nsource\n")
    run = tree.run(**env, TRAINBOX_REQUIREMENTS="wheels")
    assert (run.code, b"ran\n" in run.stdout) == (4, False), run.log
    assert "Could not find a version that satisfies the requirement source" in (run.failure or "")
    assert "a build ran" not in run.log + run.stdout.decode()


def test_with_its_hash_a_requirement_is_installed(tree: Tree) -> None:
    env = with_requirements(tree)
    digest = hashlib.sha256((tree.root / "wheels/dependency-1.0-py3-none-any.whl").read_bytes()).hexdigest()
    line = f"dependency==1.0 --hash=sha256:{digest}"
    tree.write("code/requirements.txt", f"--no-index\n--find-links ../wheels\n{line}\n")
    tree.program("import dependency\nprint(dependency.words)").hyperparameters(trainbox_requirements="hashes")
    run = tree.run(**env)
    assert (run.code, run.stdout.splitlines()[-1]) == (0, b"installed"), run.log


def test_pip_can_be_left_out(tree: Tree) -> None:
    env = with_requirements(tree)
    tree.program("print('ran')").hyperparameters(trainbox_requirements="off")
    run = tree.run(**env)
    assert (run.code, run.stdout) == (0, b"ran\n"), run.log
    assert "trainbox_requirements=off: -r requirements.txt is not installed" in run.log


@pytest.mark.skipif(os.geteuid() != 0 or bool(namespace.probe("root")), reason="needs root and private mounts")
def test_where_the_image_is_read_only_requirements_go_into_the_tree(tree: Tree) -> None:
    """And what the image has is used: as any user, in a container whose own files cannot be written."""
    env = with_requirements(tree)
    del env["PIP_TARGET"], env["PYTHONPATH"]
    program = "import dependency, msgspec\nprint(dependency.words, dependency.__file__)\nprint(msgspec.__file__)\n"
    tree.program(program).write("code/requirements.txt", "--no-index\n--find-links ../wheels\ndependency\nmsgspec\n")
    read_only = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    run = tree.run(prefix=["unshare", "-m", "sh", "-c", read_only, sys.prefix], **env)
    assert run.code == 0, run.log
    assert f"into {tree.root}/packages: {sysconfig.get_path('purelib')} cannot be written" in run.log
    installed, found = run.stdout.decode().splitlines()[-2:]
    assert installed.startswith(f"installed {tree.root}/packages/lib/")
    assert found == msgspec.__file__


_BACKEND = """
    import time, pathlib
    def build_wheel(directory, config_settings=None, metadata_directory=None):
        {act}
"""


def with_package(tree: Tree, act: str, directory: str = "code") -> None:
    """A package whose build backend is its own and needs no network."""
    toml = "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
    tree.write(f"{directory}/pyproject.toml", toml).write(
        f"{directory}/backend.py", textwrap.dedent(_BACKEND.format(act=act))
    )


def test_a_package_is_installed_and_its_nested_program_run_as_a_module(tree: Tree) -> None:
    env = with_requirements(tree)
    act = "pathlib.Path(directory, 'mine-1.0-py3-none-any.whl').write_bytes(pathlib.Path('mine.whl').read_bytes());"
    with_package(tree, act + " return 'mine-1.0-py3-none-any.whl'")
    tree.write("code/mine.whl", wheel("mine", "words = 'built'\n")).write("code/setup.py", "")
    tree.program("import dependency, mine\nprint(__spec__.name, mine.words, dependency.words)\n", "src/train.py")
    run = tree.run(SAGEMAKER_PROGRAM="src/train.py", **env)
    assert run.code == 0, run.log
    assert run.stdout.endswith(b"\nsrc.train built installed\n")


@pytest.mark.skipif(os.geteuid() != 0 or bool(namespace.probe("root")), reason="needs root and private mounts")
def test_a_package_whose_directory_is_read_only_is_built_in_a_copy(tree: Tree) -> None:
    """pip builds where the code lies, and most backends write there."""
    env = with_requirements(tree)
    (tree.code / "requirements.txt").unlink()
    made = "pathlib.Path(directory, 'mine-1.0-py3-none-any.whl').write_bytes(pathlib.Path('mine.whl').read_bytes());"
    with_package(tree, f"pathlib.Path('built').touch(); {made} return 'mine-1.0-py3-none-any.whl'")
    tree.write("code/mine.whl", wheel("mine", "words = 'built'\n")).write("tmp/.keep", "")
    tree.program("import mine\nprint(mine.words)\n")
    read_only = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    run = tree.run(
        prefix=["unshare", "-m", "sh", "-c", read_only, str(tree.code)],
        TMPDIR=str(tree.root / "tmp"),
        PIP_NO_INDEX="1",
        **env,
    )
    assert (run.code, run.stdout.splitlines()[-1]) == (0, b"built"), run.log
    assert f"{tree.code} cannot be written: pip builds in a copy, {tree.root}/tmp/trainbox-" in run.log
    assert not (tree.code / "built").exists()


def test_an_error_of_a_build_is_in_the_failure_file(tree: Tree) -> None:
    env = with_requirements(tree)
    with_package(tree, "import torch_is_not_here")
    run = tree.program("").run(**env)
    assert run.code == 4
    assert run.failure is not None
    assert "ModuleNotFoundError: No module named 'torch_is_not_here'" in run.failure


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_a_requirement_that_does_not_compile_is_named_with_the_line_of_the_compiler(tree: Tree) -> None:
    env = with_requirements(tree)
    with_package(tree, "import subprocess; subprocess.run(['cc', '-c', 'fast.c'], check=True)", "code/fastlib")
    tree.write("code/fastlib/fast.c", '#include "not_there.h"\n').write(
        "code/requirements.txt", "--no-index\n./fastlib\n"
    )
    run = tree.program("").run(**env)
    assert run.code == 4
    assert run.failure is not None
    first, hint = run.failure.splitlines()
    assert first == (
        f"ClientError: pip could not install -r requirements.txt in {tree.code}: ./fastlib does not build:"
        " fast.c:1:10: fatal error: not_there.h: No such file or directory"
    )
    assert "apt-get install -y build-essential" in hint


def test_sigterm_during_a_slow_pip_ends_the_job_with_143(tree: Tree) -> None:
    env = with_requirements(tree)
    with_package(tree, "pathlib.Path(__file__).with_name('building').touch(); time.sleep(60)")
    process = tree.program("print('never')").start(env)
    # pip builds in the directory itself, or in a copy of it
    eventually((tree.code / "building").exists, "the build")
    process.send_signal(signal.SIGTERM)
    run = tree.finish(process)
    assert run.code == 143
    assert run.failure == "ClientError: stopped by a signal while pip was installing"
    assert b"never" not in run.stdout
    with contextlib.suppress(FileNotFoundError):
        assert not [path for path in (tree.root / "site").iterdir() if path.name.startswith("mine")]
