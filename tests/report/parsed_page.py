"""A page as a browser's parser sees it, and text that tries to break out of one."""

import json
from html.parser import HTMLParser

ATTACKS = ["<script>alert(1)</script>", "</script><img src=x onerror=alert(2)>", "<!-- {{ 7 * 7 }} --!>", "\"'>&lt;b"]


class Page(HTMLParser):
    """The tags, their attributes, the text and the scripts of a page, as a browser's parser sees them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.scripts: list[tuple[dict[str, str], str]] = []
        self._within: tuple[str, dict[str, str]] = ("", {})
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._within = (tag, dict(attrs))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        self._within = ("", {})

    def handle_data(self, data):
        if self._within[0] == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self._within[0] != "style":
            self.text.append(data)

    def ids(self) -> set[str]:
        return {attributes["id"] for _, attributes in self.tags if "id" in attributes}

    def code(self) -> list[str]:
        return [text for attributes, text in self.scripts if attributes.get("type") != "application/json"]

    def specs(self) -> dict[str, dict]:
        return {
            attributes["id"]: json.loads(text)
            for attributes, text in self.scripts
            if attributes.get("type") == "application/json"
        }
