"""What every test shares: nothing of this machine's SageMaker or shell, hypothesis without a clock, short summaries."""

import gc
import os
import signal
from collections.abc import Generator

import hypothesis
import pytest

from tests.support import forks, tiers
from tests.support.waiting import PATIENCE

# Two shared cores: an example that waits for a processor is not a slow one. CI replays the same examples every time.
hypothesis.settings.register_profile("default", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("default")

_GUARD = tiers.Guard()
_SCRUBBED = ("SM_", "SAGEMAKER_", "TRAINBOX_", "TRAINING_JOB_", "RANK", "LOCAL_RANK", "WORLD_SIZE", "OMP_WAIT_POLICY")


def pytest_configure(config: pytest.Config) -> None:
    """In the background a shell has these ignored, and every process that a test starts would ignore them, too."""
    # The threads of libraries that are loaded here sleep while they wait for work: two workers share two processors.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if config.option.timeout is None:
        config.option.timeout = float(config.getini("timeout")) * PATIENCE
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported stays, a million objects: nobody looks for cycles among them as they come, nor in every test."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything that is not marked is fast."""
    for item in items:
        tiers.sort(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    """A fast test starts no process, also by a fixture."""
    with _GUARD.over(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Likewise."""
    with _GUARD.over(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    """Likewise."""
    with _GUARD.over(item):
        return (yield)


@pytest.fixture(autouse=True)
def _no_job_around_us(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(_SCRUBBED):
            monkeypatch.delenv(name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a fixture skips, as no engine answers, is one line of the summary for a file, not one for each test."""
    report = yield
    if report.when == "setup" and report.skipped and isinstance(report.longrepr, tuple):
        # Pytest folds those of the same place and reason.
        report.longrepr = (str(item.path.relative_to(item.config.rootpath)), 1, report.longrepr[2])
    return report


@pytest.fixture(scope="session", autouse=True)
def _fork_server() -> Generator[None]:
    with forks.served():
        yield
