"""What the README says can be done, can be done."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _quickstart() -> str:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 1
    return str(blocks[0])


def test_quickstart_runs_and_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VPRM_SEARCH_CACHE", str(tmp_path / "cache"))
    code = _quickstart()
    assert len(code.splitlines()) <= 25
    exec(compile(code, "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert "What is" in out
    assert "Step 1:" in out
    assert re.search(r"path score [01]\.\d+ after \d+ candidates", out)


def test_the_quickstart_page_is_the_readmes() -> None:
    """Its code is not written there: a build puts in what the README has between two marks."""
    page = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    taken = re.findall(r'^--8<-- "README.md:(\w+)"$', page, flags=re.MULTILINE)
    assert taken == ["install", "quickstart"]
    marked = {
        name: README.split(f"<!-- --8<-- [start:{name}] -->")[1].split(f"[end:{name}]")[0]
        for name in taken
    }
    assert _quickstart() in marked["quickstart"]
    assert "pip install" in marked["install"]


def test_the_drawn_graph_is_the_graph() -> None:
    from langchain_core.language_models.fake_chat_models import FakeListChatModel

    from vprm_search import create_search_graph
    from vprm_search.types import ScoreRequest, ScoreResult

    class NoScorer:
        async def score(self, requests: list[ScoreRequest]) -> list[ScoreResult]:
            raise AssertionError("the graph is drawn, not run")

    graph = create_search_graph(policy=FakeListChatModel(responses=["x"]), scorer=NoScorer())
    drawn = graph.compile().get_graph()
    real = {(_name(e.source), _name(e.target)) for e in drawn.edges}
    (picture,) = re.findall(r"```mermaid\n(.*?)```", README, flags=re.DOTALL)
    shown = re.findall(r"(\w+)(?:\(\[\w+\]\))? --(?: \w+ --)?> (\w+)", picture)
    assert {(a.lower(), b.lower()) for a, b in shown} == real


def _name(node: str) -> str:
    return node.strip("_").lower()


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_files_that_the_architecture_names_are_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)*(?:\.py|/))`", text))
    assert len(named) > 30
    package = ROOT / "vprm_search"
    for name in sorted(named):
        places = (ROOT / name, package / name, package / "scoring" / name)
        assert any(place.exists() for place in places), name


def test_the_make_targets_the_readme_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`?make ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_tables_of_the_readme_are_those_of_the_docs() -> None:
    pages = [ROOT / "docs" / name for name in ("evaluation.md", "leaderboard.md")]
    measured = {line for page in pages for line in page.read_text(encoding="utf-8").splitlines()}
    rows = [line for line in README.splitlines() if re.match(r"\|.*\d \[[\d.]+, ", line)]
    assert len(rows) > 10
    assert [row for row in rows if row not in measured] == []
