"""The HTML page: one file, no network, and nothing in it that a model wrote can run."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.report.payloads import PAYLOADS
from tests.report.searches import child, ended, large_search, small_search, written_by
from vprm_search.answers import extract_answer
from vprm_search.images import normalise_image
from vprm_search.report.html import escaped_json, html_page, page_data
from vprm_search.report.view import printable, view_of
from vprm_search.tree import SearchTree
from vprm_search.types import ImageData, Problem


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


# --- large pages open at the answer --------------------------------------------------------------


def held(text: str) -> dict[str, Any]:
    """Return the data of a page."""
    data: dict[str, Any] = json.loads(Page(text).text_of("script", id="data"))
    return data


def check_folds(data: dict[str, Any]) -> set[str]:
    """Check what a page folds; return the ids of the steps it shows at first."""
    nodes = {node["id"]: node for node in data["nodes"]}
    shown = {node["id"] for node in data["nodes"] if node["fold"] is None}
    with_children = {node["parent"] for node in data["nodes"]}
    for node in data["nodes"]:
        if node["id"] in shown:
            assert node["parent"] is None or node["parent"] in shown
            continue
        assert not node["chosen"]
        assert node["fold"] == "" or node["fold"] in shown
        above = node
        while above["parent"] not in (None, node["fold"]):
            above = nodes[above["parent"]]
        assert (above["parent"] or "") == node["fold"]
        if node["id"] not in with_children:
            assert node["status"] in ("pruned", "failed")
    return shown


def test_a_page_of_two_thousand_steps_shows_the_answers_path_and_folds_what_is_pruned() -> None:
    tree, result = large_search(62)
    assert len(tree) > 1900
    data = held(html_page(view_of(tree, result)))
    shown = check_folds(data)
    path = [record.id for record in tree.path(str(result.node)) if record.parent]
    assert set(path) <= shown
    # what is left are the answer's path and the paths that finished beside it; the rest is 1 row
    # a level: no longer 1,700 rows of 52 pixels
    assert len(shown) <= len(path) + 3 * 4
    folds = {node["fold"] for node in data["nodes"]} - {None}
    assert len(shown) + len(folds) < 150
    assert data["rows"] > 1500
    order = [node["id"] for node in data["nodes"] if node["id"] in shown]
    assert order.index(path[-1]) < 80


def test_a_small_page_folds_nothing() -> None:
    data = held(html_page(view_of(*large_search(2, width=2, expand=6))))
    assert len(data["nodes"]) == 18
    assert {node["fold"] for node in data["nodes"]} == {None}


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_no_living_path_is_ever_folded(data: st.DataObject) -> None:
    """Whatever the tree: what is shown hangs together, and only dead subtrees are folded."""
    tree = SearchTree(Problem("?"))
    known = [tree.root_id]
    for number in range(data.draw(st.integers(45, 120))):
        parent = data.draw(st.sampled_from(known[-20:]))
        status = data.draw(st.sampled_from(["open", "pruned", "pruned", "failed", "finished"]))
        text = "" if status == "failed" else f"step {number}"
        record = child(tree, parent, number, text, score=0.5, status=status)
        tree.merge([record])
        if status == "open":
            known.append(record.id)
    result = ended(tree)
    page = held(html_page(view_of(tree, result)))
    shown = check_folds(page)
    living = {node["id"] for node in page["nodes"] if node["status"] in ("finished", "truncated")}
    assert living <= shown


CHROMIUM = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
)


def browsed(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Open a page in headless Chromium; return the document it ends with, and what was logged."""
    page = folder / "page.html"
    page.write_text(text, encoding="utf-8")
    return subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--window-size=1400,900",
            f"--user-data-dir={folder / 'profile'}",
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


WATCHED = """<script>
const inside = (element, box) => {
  const [a, b] = [element.getBoundingClientRect(), box.getBoundingClientRect()];
  return a.left >= b.left && a.right <= b.right && a.top >= b.top && a.bottom <= b.bottom;
};
const canvas = document.getElementById("canvas");
const seen = () => ({
  steps: document.querySelectorAll("g.node:not(.fold)").length,
  folds: document.querySelectorAll("g.fold").length,
  here: inside(document.querySelector("g.here"), canvas),
  note: document.querySelector("g.here .note").textContent,
});
const told = [seen()];
document.querySelector("g.fold").dispatchEvent(new MouseEvent("click", { bubbles: true }));
told.push(seen());
document.getElementById("fold").click();
told.push(seen());
document.getElementById("fold").click();
told.push(seen());
document.body.dataset.told = JSON.stringify(told);
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_in_a_browser_a_large_page_opens_at_the_answer_and_unfolds(tmp_path: Path) -> None:
    text = html_page(view_of(*large_search(62)))
    data = held(text)
    shown = sum(node["fold"] is None for node in data["nodes"])
    folds = len({node["fold"] for node in data["nodes"]} - {None})
    first = next(node["fold"] for node in data["nodes"] if node["fold"] is not None)
    within = sum(node["fold"] == first for node in data["nodes"])
    # The page allows no script but its own; this test's may run, too.
    watched = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    done = browsed(watched.replace("</body>", WATCHED), tmp_path)
    (body,) = [attributes for tag, attributes in Page(done.stdout).elements if tag == "body"]
    at_first, one_open, all_open, folded_again = json.loads(str(body["data-told"]))
    assert at_first == {"steps": shown, "folds": folds, "here": True, "note": "● answer"}
    assert (one_open["steps"], one_open["folds"]) == (shown + within, folds - 1)
    assert one_open["here"]  # the first step that came out
    assert (all_open["steps"], all_open["folds"]) == (len(data["nodes"]), 0)
    assert folded_again == at_first
    assert "Uncaught" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_in_a_browser_everything_is_drawn_and_nothing_runs(tmp_path: Path) -> None:
    """Open one page with every payload in headless Chromium; read the document it ends with."""
    tree, result = written_by(list(PAYLOADS[:10]))
    steps = [child(tree, tree.root_id, 10 + i, text, score=0.5) for i, text in enumerate(PAYLOADS)]
    tree.merge(steps)
    result = ended(tree)
    done = browsed(html_page(view_of(tree, result), [image()]), tmp_path)
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


@pytest.mark.parametrize(
    ("text", "parts", "source"),
    [
        ("So \U0001f600\n\\boxed{7}", ["So \U0001f600\n\\boxed{", "7", "}"], "boxed"),
        ("Answer: **12 cm**.", ["Answer: **", "12 cm", "**."], "marker"),
        ("I think it is 7.", None, None),
    ],
)
def test_the_page_marks_what_an_answer_was_read_from(
    text: str, parts: list[str] | None, source: str | None
) -> None:
    answer = extract_answer(text) or "7"
    tree = SearchTree(Problem("?"))
    step = child(tree, tree.root_id, 0, text, status="truncated", score=0.5, answer=answer)
    tree.merge([step])
    (node,) = page_data(view_of(tree, ended(tree)))["nodes"]
    assert node["reading"] == (None if parts is None else {"parts": parts, "source": source})
    script = resources.files("vprm_search.report").joinpath("viewer.js").read_text("utf-8")
    assert "the path is unfinished" in script
