"""A library's first import without what it does not need."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from trainbox.tabular.lean import replaced, without

REPOSITORY = Path(__file__).resolve().parents[2]


def test_what_is_kept_out_cannot_be_imported_and_can_be_afterwards() -> None:
    before = sys.modules["json"]
    with without("json", "xmlrpc"):
        for name in ("json", "xmlrpc"):
            with pytest.raises(ModuleNotFoundError, match=f"import of {name} halted"):
                __import__(name)
    assert sys.modules["json"] is before
    assert __import__("xmlrpc").__name__ == "xmlrpc"


def test_it_can_be_imported_again_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), without("json"):
        raise ZeroDivisionError
    assert __import__("json").loads("1") == 1


@pytest.mark.process
def test_what_is_imported_is_never_looked_through_for_garbage() -> None:
    program = """
import gc
from trainbox.tabular.lean import unlisted, without
before = gc.get_freeze_count()
with without("pandas"):
    assert not gc.isenabled()
    import json.decoder
assert gc.isenabled()
assert gc.get_freeze_count() > before
gc.disable()
with without():
    pass
assert not gc.isenabled()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


@pytest.mark.process
def test_what_is_not_listed_is_there_all_the_same_and_listed_again_afterwards() -> None:
    program = """
import sys
import numpy
from trainbox.tabular.lean import unlisted
before = numpy.__all__, numpy.__dir__
try:
    with unlisted(numpy, "f2py", "testing"):
        copied = {}
        exec("from numpy import *", copied)
        assert "zeros" in copied and "zeros" in dir(numpy)
        assert not {"f2py", "testing"} & ({*copied} | {*dir(numpy)})
        assert not {"numpy.f2py", "numpy.testing"} & {*sys.modules}
        assert numpy.testing.assert_equal(1, 1) is None
        raise ZeroDivisionError
except ZeroDivisionError:
    pass
assert (numpy.__all__, numpy.__dir__) == before
assert "f2py" in dir(numpy)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


PUT_OFF = """
import sys
from trainbox.tabular.lean import put_off
with put_off("statistics", "mean", "NormalDist"):
    import statistics as before
    from statistics import NormalDist, mean
    assert "__file__" not in vars(sys.modules["statistics"])
assert "statistics" not in sys.modules
"""


@pytest.mark.process
@pytest.mark.parametrize(
    "use",
    [
        "assert mean([1, 2, 3]) == 2",
        "assert NormalDist.from_samples([1, 2, 3]).mean == NormalDist(2, 1).mean",
        "assert before.median([1, 5, 9]) == 5",
        "import statistics; assert statistics.mode([1, 1, 2]) == 1",
    ],
)
def test_what_is_put_off_is_there_when_it_is_used(use: str) -> None:
    program = PUT_OFF + use + "\nassert sys.modules['statistics'].__file__"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


@pytest.mark.process
def test_whoever_takes_more_of_what_is_put_off_gets_all_of_it() -> None:
    program = """
import sys
from trainbox.tabular.lean import put_off
with put_off("statistics", "mean"):
    from statistics import StatisticsError
    from statistics import mean
assert issubclass(StatisticsError, ValueError) and mean.__module__ == "statistics"
with put_off("statistics", "mode"):
    from statistics import mode
assert mode is sys.modules["statistics"].mode
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


def test_what_is_replaced_comes_back_after_an_error() -> None:
    package, seen = SimpleNamespace(name="before"), []

    def fail() -> None:
        with replaced(package, "name", "01"):
            seen.append(package.name)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (seen, package.name) == (["01"], "before")


@pytest.mark.process
@pytest.mark.parametrize("script", ["xgboost", "random_forest"])
def test_the_bundled_scripts_load_nothing_that_they_do_not_use(script: str) -> None:
    program = f"""
import runpy, sys
runpy.run_path({os.fspath(REPOSITORY / "train_scripts" / f"{script}_train.py")!r})
unused = {{"pandas", "numpy.f2py", "numpy.testing", "matplotlib", "torch", "xgboost.sklearn", "scipy.stats", "rich"}}
found = unused & {{*sys.modules}}
print(sorted(found))
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=300)
    assert (answer.stdout, answer.returncode) == ("[]\n", 0), answer.stderr


@pytest.mark.process
def test_xgboost_trains_without_what_is_kept_out_and_finds_it_later() -> None:
    program = """
import sys
import numpy
from trainbox.tabular.lean import unlisted, without
with without("sklearn", "pandas", "xgboost.sklearn"), unlisted(numpy, "f2py", "testing"):
    import xgboost
assert not {"sklearn", "pandas", "scipy.special", "numpy.f2py"} & {*sys.modules}
rows = xgboost.QuantileDMatrix(numpy.eye(8), numpy.arange(8))
print(xgboost.train({"max_depth": 2}, rows, 1).num_boosted_rounds())
import sklearn.model_selection
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=300)
    assert (answer.stdout, answer.returncode) == ("1\n", 0), answer.stderr
