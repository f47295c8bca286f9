"""Packages that training jobs ask for beside ours install in the image and work: nothing of the system is missing.

Each is downloaded by the pip of this machine, for the image's Python, and installed in a container without a network.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.image.test_image import docker, label

pytestmark = pytest.mark.docker

#: What pip is asked for, and code that uses what is compiled in it.
PACKAGES = {
    "lightgbm": """
import lightgbm, numpy
data = lightgbm.Dataset(numpy.arange(400.0).reshape(200, 2), numpy.arange(200) % 2)
print(lightgbm.train({"objective": "binary", "verbose": -1}, data, 2).num_trees())
""",
    "catboost": """
import catboost
model = catboost.CatBoostClassifier(iterations=2, verbose=False, allow_writing_files=False)
print(model.fit([[n, n % 3] for n in range(50)], [n % 2 for n in range(50)]).tree_count_)
""",
    "prophet": """
import pandas, prophet
days = pandas.DataFrame({"ds": pandas.date_range("2026-01-01", periods=60), "y": range(60)})
print(len(prophet.Prophet(uncertainty_samples=0).fit(days).predict(days)))
""",
    "opencv-python-headless": """
import cv2, numpy
ok, coded = cv2.imencode(".png", numpy.zeros((8, 8, 3), numpy.uint8))
print(ok, cv2.GaussianBlur(cv2.imdecode(coded, 1), (3, 3), 0).shape)
""",
    "psycopg[binary]": """
import psycopg
print(psycopg.pq.__impl__, psycopg.pq.version())
assert psycopg.pq.__impl__ == "binary"
""",
    "shap": """
import numpy, shap, sklearn.ensemble
rows = numpy.arange(120.0).reshape(60, 2)
forest = sklearn.ensemble.RandomForestRegressor(n_estimators=2).fit(rows, rows[:, 0])
print(shap.TreeExplainer(forest).shap_values(rows[:3]).shape)
""",
}


@pytest.mark.long
@pytest.mark.parametrize("package", PACKAGES)
def test_it_installs_and_works(image: str, package: str, tmp_path: Path) -> None:
    version = label(image, "trainbox.python")
    wheels = tmp_path / "wheels"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", wheels),
            *("--only-binary", ":all:", "--python-version", version, "--implementation", "cp", package),
        ],
        check=True,
        timeout=600,
    )
    (tmp_path / "use.py").write_text(PACKAGES[package])
    install = f"pip install --quiet --no-index --find-links /here/wheels '{package}'"
    answer = docker(
        *("run", "--rm", "--network", "none", "--volume", f"{tmp_path}:/here:ro", image),
        *("sh", "-ec", f"{install}; cd /tmp; python /here/use.py"),
        timeout=600,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    print(answer.stdout)


@pytest.mark.representative
def test_the_libraries_of_the_system_are_there_and_dpkg_knows_them(image: str) -> None:
    lines = (Path(__file__).parents[2] / "tools/image/system").read_text().splitlines()
    libraries, packages = zip(*(line.split() for line in lines if not line.startswith("#")), strict=True)
    load = f"import ctypes; print(*(ctypes.CDLL(name)._name for name in {libraries}))"
    answer = docker("run", "--rm", image, "python", "-c", load)
    assert answer.stdout.split() == [*libraries], answer.stderr
    status = docker("run", "--rm", image, "dpkg-query", "--show", *packages)
    assert status.returncode == 0, status.stderr
