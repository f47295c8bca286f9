"""What a browser would make of a page: its tags with their attributes, and its text."""

from html.parser import HTMLParser


class HtmlReader(HTMLParser):
    """The tags of a page with their attributes, and its text without scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._silent = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._silent = tag in {"script", "style"}

    def handle_endtag(self, tag: str) -> None:
        self._silent = self._silent and tag not in {"script", "style"}

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.texts.append(data)


def read_html(page: str) -> HtmlReader:
    """Read a page."""
    reader = HtmlReader()
    reader.feed(page)
    return reader
