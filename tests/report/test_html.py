"""The HTML page: one file, no network, and nothing in it that a model wrote can run."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.report.payloads import PAYLOADS
from tests.report.searches import small_search, written_by
from vprm_search.images import normalise_image
from vprm_search.report.html import escaped_json, html_page, page_data
from vprm_search.report.view import printable, view_of
from vprm_search.types import ImageData


class Page(HTMLParser):
    """What a browser's parser makes of a page: its elements, and the raw text of some."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[int, str] = {}
        self.visible = ""
        self._open: int | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._open = len(self.elements) - 1

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._open = None

    def handle_data(self, data: str) -> None:
        if self._open is None:
            self.visible += data
        else:
            self.texts[self._open] = self.texts.get(self._open, "") + data

    def text_of(self, tag: str, **attributes: str) -> str:
        (place,) = [
            i
            for i, (name, attrs) in enumerate(self.elements)
            if name == tag and attributes.items() <= attrs.items()
        ]
        return self.texts.get(place, "")

    @property
    def shape(self) -> list[tuple[str, dict[str, str | None]]]:
        return self.elements


def image() -> ImageData:
    return normalise_image(Image.new("RGB", (40, 30), (10, 200, 30)))


def page_of(texts: list[str]) -> str:
    tree, result = written_by(texts)
    view = view_of(tree, result, title=texts[0], expected=texts[-1])
    return html_page(view, [image()])


REFERENCE = Page(page_of(["plain text"]))


def check_page(text: str) -> None:
    """Check that the page's elements are the reference's, whatever is written in the search."""
    page = Page(text)
    assert page.shape == REFERENCE.shape
    assert page.visible == REFERENCE.visible
    assert page.text_of("style") == REFERENCE.text_of("style")
    scripts = [attrs for tag, attrs in page.elements if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "data"}, {}]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_payload_in_any_place_changes_no_element(payload: str) -> None:
    text = page_of([payload])
    check_page(text)
    data = json.loads(Page(text).text_of("script", id="data"))
    assert data["question"] == printable(payload, lines=True)
    assert printable(payload, lines=True) in [node["text"] for node in data["nodes"]]


@given(st.lists(st.text(max_size=40), min_size=1, max_size=10))
def test_any_text_changes_no_element(texts: list[str]) -> None:
    from vprm_search.steps import normalise_text

    check_page(page_of([normalise_text(text) for text in texts]))


@given(
    st.recursive(
        st.text() | st.none() | st.integers(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_escaped_json_says_the_same_and_cannot_end_a_script(value: Any) -> None:
    text = escaped_json(value)
    assert json.loads(text) == value
    assert text.isascii()
    assert not set("<>&\u2028\u2029") & set(text)


def test_the_policy_allows_exactly_the_pages_own_script_and_style() -> None:
    page = Page(page_of(["x"]))
    (policy,) = [a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a]
    rules = dict(rule.strip().split(" ", 1) for rule in (policy or "").split(";"))
    assert rules.pop("default-src") == "'none'"
    assert rules.pop("img-src") == "data:"
    assert rules.pop("base-uri") == "'none'"
    assert rules.pop("form-action") == "'none'"
    own = [i for i, (t, a) in enumerate(page.elements) if t == "script" and not a]
    for name, text in (("script", page.texts[own[0]]), ("style", page.text_of("style"))):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules.pop(f"{name}-src") == f"'sha256-{digest}'"
    assert rules == {}


def test_the_page_names_no_address_and_handles_no_event_in_its_markup() -> None:
    text = html_page(view_of(*small_search()), [image()])
    addresses = set(re.findall(r"https?://[^\s\"'`]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # the name of SVG, not a place
    page = Page(text)
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert "style" not in attributes
        assert "src" not in attributes


def test_the_script_writes_text_only_as_text() -> None:
    script = Page(page_of(["x"])).texts
    code = max(script.values(), key=len) + "".join(script.values())
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        "Function(",
    ):
        assert word not in code


def test_the_data_holds_the_search_and_its_image() -> None:
    tree, result = small_search()
    picture = image()
    data = page_data(view_of(tree, result, expected="5"), [picture])
    assert base64.b64decode(data["images"][0].removeprefix("data:image/png;base64,")) == picture.png
    texts = {node["text"]: node for node in data["nodes"]}
    assert texts["red = 2."]["copies"] == 2
    assert texts["red = 7."]["status"] == "pruned"
    assert texts["red = 7."]["reason"] == 'after "red = 2."'
    assert texts["2 + 3 = 5. Answer: 5"]["chosen"] is True
    assert data["answer"] == data["expected"] == "5"
    json.dumps(data, allow_nan=False)


CHROMIUM = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_in_a_browser_everything_is_drawn_and_nothing_runs(tmp_path: Path) -> None:
    """Open one page with every payload in headless Chromium; read the document it ends with."""
    tree, result = written_by(list(PAYLOADS[:10]))
    from tests.report.searches import child, ended

    steps = [child(tree, tree.root_id, 10 + i, text, score=0.5) for i, text in enumerate(PAYLOADS)]
    tree.merge(steps)
    result = ended(tree)
    page = tmp_path / "page.html"
    page.write_text(html_page(view_of(tree, result), [image()]), encoding="utf-8")
    profile = tmp_path / "profile"
    done = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={profile}",
            "--enable-logging=stderr",
            "--virtual-time-budget=3000",
            "--dump-dom",
            page.as_uri(),
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    drawn = Page(done.stdout)
    tags = [tag for tag, _ in drawn.elements]
    assert tags.count("script") == 2
    assert tags.count("img") == 1
    assert tags.count("g") == len(view_of(tree, result).nodes)
    assert not {"iframe", "form", "object", "base", "link", "video", "input"} & set(tags)
    for _, attributes in drawn.elements:
        assert not [name for name in attributes if name.startswith("on")]
    for word in ("Content Security Policy", "Uncaught", "CONSOLE"):
        assert word not in done.stderr
