"""What to do about failures that many people meet: each text as a real program wrote it, and some of them made anew."""

import os
import textwrap
from pathlib import Path

import pytest

from tests.support.failing import stderr_of
from trainbox.contract.failures.diagnosis import Diagnosis
from trainbox.contract.failures.failure import LONGEST_FAILURE, compose
from trainbox.diagnostics.cause import Cause, find_cause
from trainbox.diagnostics.hints import find_hint
from trainbox.local.backends import namespace

CODE = Path("/opt/ml/code")
LIBRARY = "/usr/lib/python3.11"
FOLLOWS = "\nThe above exception was the direct cause of the following exception:\n\n"
OUTER = f"""\
Traceback (most recent call last):
  File "/opt/ml/code/train.py", line 5, in main
    print(pool.map(work, range(4)))
  File "{LIBRARY}/multiprocessing/pool.py", line 774, in get
    raise self._value
ValueError: bad row 0
"""
WORKER = '    return inner(x)\n  File "/opt/ml/code/work.py", line 2, in inner\n    raise ValueError(x)\n'
QUOTED = f'''\
{{}}RemoteTraceback:
"""
Traceback (most recent call last):
  File "{LIBRARY}/multiprocessing/pool.py", line 125, in worker
    result = (True, func(*args, **kwds))
  File "{{}}", line 4, in work
{{}}ValueError: bad row 0
"""
'''
KILLED = f"""\
Traceback (most recent call last):
  File "{LIBRARY}/site-packages/torch/utils/data/_utils/signal_handling.py", line 73, in handler
    _error_if_any_worker_fails()
RuntimeError: DataLoader worker (pid 9) {{}}
{FOLLOWS}Traceback (most recent call last):
  File "/opt/ml/code/train.py", line 6, in <module>
    for batch in loader: pass
  File "{LIBRARY}/site-packages/torch/utils/data/dataloader.py", line 1304, in _try_get_data
    raise RuntimeError(
RuntimeError: DataLoader worker (pid(s) 9) exited unexpectedly
"""


def hint_of(log: str) -> str:
    cause = find_cause(log, CODE)
    assert cause is not None
    return find_hint(cause, [])


# -- workers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module", ["multiprocessing.pool.", "multiprocess.pool.", "concurrent.futures.process._", "joblib.externals.loky._"]
)
@pytest.mark.parametrize("prefix", ["", "[rank0]: "])
def test_an_exception_of_a_worker_is_placed_where_the_worker_raised_it(module: str, prefix: str) -> None:
    log = QUOTED.format(module, "/opt/ml/code/work.py", WORKER) + FOLLOWS + OUTER
    log = "".join(f"{prefix}{line}\n" for line in log.splitlines())
    assert find_cause(log, CODE) == Cause("ValueError: bad row 0", "work.py:2 in inner", "ValueError")


def test_a_worker_that_runs_a_library_is_placed_where_it_was_asked_to() -> None:
    log = QUOTED.format("multiprocessing.pool.", f"{LIBRARY}/json/decoder.py", "") + FOLLOWS + OUTER
    assert find_cause(log, CODE) == Cause("ValueError: bad row 0", "train.py:5 in main", "ValueError")


def test_what_a_script_raises_because_of_a_worker_is_placed_in_the_script() -> None:
    log = QUOTED.format("multiprocessing.pool.", "/opt/ml/code/work.py", WORKER) + FOLLOWS + OUTER
    own = 'Traceback (most recent call last):\n  File "/opt/ml/code/train.py", line 9, in <module>\nOSError: no rows\n'
    assert find_cause(log + FOLLOWS + own, CODE) == Cause("OSError: no rows", "train.py:9", "OSError")


def test_a_data_loader_over_a_library_is_placed_where_its_batch_was_asked_for() -> None:
    log = f"""\
Traceback (most recent call last):
  File "/opt/ml/code/train.py", line 7, in main
    for batch in loader:
  File "{LIBRARY}/site-packages/torch/_utils.py", line 794, in reraise
    raise exception
ValueError: Caught ValueError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "{LIBRARY}/site-packages/datasets/table.py", line 374, in fetch
    data = fetcher.fetch(index)
ValueError: bad row 0
"""
    assert find_cause(log, CODE) == Cause("ValueError: bad row 0", "train.py:7 in main", "ValueError")


@pytest.mark.parametrize(
    ("end", "hint"),
    [
        (
            "is killed by signal: Bus error. It is possible that dataloader's workers are out of shared memory.",
            "shm-size",
        ),
        ("is killed by signal: Killed. ", "often the kernel"),
        ("is killed by signal: Segmentation fault. ", "num_workers=0 and PYTHONFAULTHANDLER"),
        ("exited unexpectedly with exit code 3. Details are lost due to multiprocessing.", "num_workers=0 shows where"),
    ],
)
def test_how_a_worker_of_a_data_loader_ended_is_said_and_what_to_do(end: str, hint: str) -> None:
    found = find_cause(KILLED.format(end), CODE)
    assert found == Cause(f"RuntimeError: DataLoader worker (pid 9) {end}".rstrip(), "train.py:6", "RuntimeError")
    assert hint in find_hint(found, [])


def test_a_worker_of_which_nothing_else_is_known_is_said_to_be_gone() -> None:
    log = KILLED.partition(FOLLOWS)[2]
    assert hint_of(log).endswith("num_workers=0 shows where")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (
            "RuntimeError: unable to allocate shared memory(shm) for file </torch_9_2_0>: No space left on device (28)",
            "/dev/shm",
        ),
        ("RuntimeError: unable to write to file </torch_9_25_0>: No space left on device (28)", "/dev/shm"),
        ("OSError: [Errno 28] No space left on device: '/dev/shm/joblib_memmapping_folder_9'", "/dev/shm"),
        ("OSError: [Errno 28] No space left on device: '/opt/ml/checkpoints/1'", "VolumeSizeInGB"),
        ("concurrent.futures.process.BrokenProcessPool: A process in the process pool was terminated", "fewer workers"),
        ("joblib.externals.loky.process_executor.TerminatedWorkerError: A worker process", "fewer workers"),
        (
            "ImportError: /lib/libstdc++.so.6: version `GLIBCXX_3.4.32' not found (required by /x.so)",
            "newer base image",
        ),
        ("ImportError: /x.so: undefined symbol: _ZN3c105ErrorC2E", "another version of torch"),
    ],
)
def test_what_workers_and_libraries_lack_has_a_hint(text: str, hint: str) -> None:
    assert hint in find_hint(Cause(text, exception=text.partition(":")[0]), [])


SCRIPTS = {
    "a pool": """
        import multiprocessing
        if __name__ == "__main__":
            with multiprocessing.Pool(2) as pool:
                pool.map(work.work, range(4))
        """,
    "a pool of futures": """
        from concurrent.futures import ProcessPoolExecutor
        if __name__ == "__main__":
            with ProcessPoolExecutor(2) as pool:
                print(list(pool.map(work.work, range(4))))
        """,
    "joblib": """
        import joblib
        if __name__ == "__main__":
            joblib.Parallel(2)(joblib.delayed(work.work)(row) for row in range(4))
        """,
}
WORK = """
    def inner(row):
        raise ValueError("bad row")
    def work(row):
        return inner(row)
    """


@pytest.mark.process
@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_real_workers_are_placed_where_they_raised(tmp_path: Path, script: str) -> None:
    log = stderr_of(tmp_path, "import work\n" + textwrap.dedent(script), work=WORK)
    assert find_cause(log, tmp_path) == Cause("ValueError: bad row", "work.py:3 in inner", "ValueError")


LOADERS = """
    import os, signal, sys, traceback
    import torch
    import work
    class Rows(torch.utils.data.Dataset):
        def __init__(self, act): self.act = act
        def __len__(self): return 4
        def __getitem__(self, row): return self.act(row)
    def fail(act):
        try:
            list(torch.utils.data.DataLoader(Rows(act), num_workers=1))
        except Exception:
            traceback.print_exc()
        print("=====", file=sys.stderr)
    if __name__ == "__main__":
        fail(work.work)
        for number in (signal.SIGBUS, signal.SIGKILL):
            fail(lambda row: os.kill(os.getpid(), number))
        fail(lambda row: os._exit(3))
        fail(lambda row: torch.zeros(4_000_000))
    """


@pytest.mark.process
@pytest.mark.skipif(os.geteuid() != 0 or bool(namespace.probe("root")), reason="needs root and private mounts")
def test_real_workers_of_torch_that_fail_and_are_killed_and_have_no_shared_memory(tmp_path: Path) -> None:
    small = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs /dev/shm; exec "$@"', "sh")
    logs = stderr_of(tmp_path, LOADERS, code=0, prefix=small, work=WORK).split("=====\n")
    causes = [cause for log in logs if (cause := find_cause(log, tmp_path))]
    assert causes[0] == Cause("ValueError: bad row", "work.py:3 in inner", "ValueError")
    assert [cause.where for cause in causes[1:]] == ["train.py:11 in fail"] * 4
    words = ("signal: Bus error", "signal: Killed", "with exit code 3", "unable to allocate shared memory")
    assert all(word in cause.text for word, cause in zip(words, causes[1:], strict=True))
    hints = ("/dev/shm", "often the kernel", "num_workers=0", "/dev/shm")
    assert all(hint in find_hint(cause, []) for hint, cause in zip(hints, causes[1:], strict=True))


# -- what is not installed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("libGL.so.1", "apt-get install -y libgl1"),
        ("/opt/x/libgomp.so.1", "apt-get install -y libgomp1"),
        ("libodd-2.so.0", "'apt-file search libodd-2.so.0' names it"),
        ("libcuda.so.1", "NVIDIA driver"),
        ("libnvidia-ml.so.1", "NVIDIA driver"),
        ("libcudnn.so.9", "another version of CUDA"),
        ("libtorch_cpu.so", "another version of torch"),
    ],
)
def test_a_system_library_that_is_missing_is_named_with_its_package(name: str, hint: str) -> None:
    for kind in ("OSError", "ImportError"):
        cause = Cause(f"{kind}: {name}: cannot open shared object file: No such file or directory", exception=kind)
        assert hint in find_hint(cause, [])


@pytest.mark.process
def test_a_real_library_that_is_missing_is_named(tmp_path: Path) -> None:
    cause = find_cause(stderr_of(tmp_path, "import ctypes\nctypes.CDLL('libodd.so.7')"), tmp_path)
    assert cause is not None
    assert cause.where == "train.py:2"
    assert "the image lacks the system library libodd.so.7; in the Dockerfile: RUN apt-get" in find_hint(cause, [])


@pytest.mark.parametrize(
    ("module", "hint"),
    [
        ("sagemaker_training", "SM_* variables"),
        ("sagemaker_training.environment", "SM_* variables"),
        ("sagemaker_containers", "SM_* variables"),
        ("sagemaker_xgboost_container", "the bundled script xgboost"),
        ("sagemaker_sklearn_extension", "the package sagemaker-scikit-learn-extension in a requirements.txt"),
        ("smdistributed.dataparallel", "torch.distributed"),
        ("cv2", "opencv-python-headless in a requirements.txt"),
        ("flask", "name the package in a requirements.txt"),
    ],
)
def test_a_module_that_is_missing_is_named_with_what_takes_its_place(module: str, hint: str) -> None:
    cause = Cause(f"ModuleNotFoundError: No module named '{module}'", exception="ModuleNotFoundError")
    assert hint in find_hint(cause, [])


def test_no_hint_is_cut_behind_the_longest_cause() -> None:
    for log in (KILLED.format("is killed by signal: Bus error. " + "x" * 2000), OUTER.replace("bad", "x" * 2000)):
        cause = find_cause(log, CODE)
        assert cause is not None
        hint = find_hint(cause, [])
        text = compose(
            Diagnosis("script", cause.text, 1, where=f"{cause.where} (exit code 1, rank 3, algo-2)", hint=hint)
        )
        assert len(text) <= LONGEST_FAILURE
        assert text.endswith(hint)
