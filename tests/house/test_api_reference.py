"""The API reference has every public name, and shows signatures, sections and examples as they are written."""

import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import trainbox
from tests.support.snippets import DOCS
from tools import api_reference

FUNCTION = '''
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainbox.inner import Thing

__all__ = ["Thing", "act"]


def act(path: str, *more: int, deep: "Thing | None" = None, **rest: float) -> bool:
    """Do it.

    >>> act("a")
    True

    Args:
        path: Where; may be
            long.
        deep: One | two.

    Raises:
        OSError: It cannot be done.

    Returns:
        Whether it was done.
    """
    return True
'''
CLASS = '''
class Thing:
    """A thing."""

    #: How many
    #: there are.
    count: int = 3
    _hidden: int = 0

    @property
    def name(self) -> str:
        """Its name."""
        return ""

    def _inner(self) -> None: ...
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "trainbox").mkdir()
    (tmp_path / "trainbox" / "__init__.py").write_text(textwrap.dedent(FUNCTION))
    (tmp_path / "trainbox" / "inner.py").write_text(textwrap.dedent(CLASS))
    monkeypatch.setattr(api_reference, "PACKAGE", tmp_path)
    monkeypatch.setattr(api_reference, "MODULES", (("trainbox", (), "All."),))
    caches = (api_reference._statements, api_reference._source)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def test_every_public_name_has_an_entry() -> None:
    text = (DOCS / "api.md").read_text()
    for name in trainbox.__all__:
        assert f"\n### trainbox.{name}\n" in text
    for module, names, _ in api_reference.MODULES:
        for name in names:
            assert f"\n### {module}.{name}\n" in text


@pytest.mark.usefixtures("package")
def test_a_function_is_shown_with_its_signature_its_sections_and_its_example() -> None:
    text = api_reference.render()
    assert "act(path: str, *more: int, deep: Thing | None = None, **rest: float) -> bool" in text
    assert '```pycon\n>>> act("a")\nTrue\n```' in text
    assert "| `path` | Where; may be long. |\n| `deep` | One \\| two. |" in text
    assert "| raises | meaning |\n|---|---|\n| `OSError` | It cannot be done. |" in text
    assert "Returns: Whether it was done." in text


@pytest.mark.usefixtures("package")
def test_a_class_is_found_through_the_import_and_shown_without_what_is_private() -> None:
    text = api_reference.render()
    assert "### trainbox.Thing\n\nA thing." in text
    assert "| `count` | `int = 3` | How many there are. |" in text
    assert "#### Thing.name\n\n```text\nname: str\n```\n\nIts name." in text
    assert "hidden" not in text
    assert "_inner" not in text


@pytest.mark.usefixtures("package")
def test_a_name_that_is_gone_is_an_error_that_says_where_to_correct_it() -> None:
    with pytest.raises(api_reference.MissingNameError, match=r"trainbox has no 'gone': correct MODULES"):
        api_reference.find("trainbox", "gone")
