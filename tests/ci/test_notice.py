"""THIRD_PARTY.md names every package that an image can hold by default."""

import re
from pathlib import Path

import pytest

from tests.ci.conftest import distribution
from tools.ci import notice
from tools.image import requirements
from tools.lock import for_variant

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "THIRD_PARTY.md").read_text()
EXTRAS = "trainbox[xgboost,sklearn,torch,serving,s3,local]"


@pytest.mark.parametrize("path", sorted((ROOT / "locks").glob("image-*.txt")), ids=lambda path: path.stem)
def test_every_package_of_an_image_is_named_or_of_a_kind_that_is(path: Path) -> None:
    variant = path.stem.split("-")[1]
    wanted = requirements.requirements_of(EXTRAS, (ROOT / "pyproject.toml").read_text())
    whole = requirements.choose(path.read_text(), [*(for_variant(each, variant) for each in wanted), "pip"])
    named = set(re.findall(r"^\| ([a-z0-9-]+) \|", PAGE, re.MULTILINE))
    others = {each for each in set(whole) - named if not each.startswith(("nvidia-", "cuda-"))}
    assert others <= ({"xgboost", "triton"} if variant == "gpu" or "aarch64" in path.stem else set())


def test_a_package_that_says_no_licence_is_seen() -> None:
    lines = list(notice.table([distribution("Some_Thing", "1"), distribution("other", "1", licence="MIT")]))
    assert lines == ["| some-thing | says none |\n", "| other | MIT |\n"]
    assert "says none" not in PAGE


def test_what_wheels_contain_is_listed_without_themselves() -> None:
    bill = '{"bomFormat": "CycloneDX", "components": [{"name": "libgomp"}, {"name": "a_wheel"}]}'
    assert list(notice.carried([distribution("a-wheel", "1", sboms={"x": bill})])) == ["| a-wheel | libgomp |\n"]
