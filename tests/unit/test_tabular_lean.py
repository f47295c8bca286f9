"""A library's first import without what it does not need."""

import subprocess
import sys

import pytest

from trainbox.tabular.lean import without


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


def test_what_is_imported_is_never_looked_through_for_garbage() -> None:
    program = """
import gc
from trainbox.tabular.lean import without
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
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_xgboost_trains_without_the_two_and_finds_them_later() -> None:
    program = """
import sys
from trainbox.tabular.lean import without
with without("sklearn", "pandas"):
    import xgboost
assert not {"sklearn", "pandas"} & {*sys.modules}
import numpy
rows = xgboost.QuantileDMatrix(numpy.eye(8), numpy.arange(8))
print(xgboost.train({"max_depth": 2}, rows, 1).num_boosted_rounds())
import sklearn.model_selection
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (answer.stdout, answer.returncode) == ("1\n", 0), answer.stderr
