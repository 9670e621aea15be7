"""The table of finish reasons on the page is the table of the code.

`python -m tests.docs.test_policies` writes it anew. The table of clients is written, and checked,
by `make test-clients`.
"""

from __future__ import annotations

from pathlib import Path

from vprm_search.chat.finish_reasons import REASONS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "policies.md"
HEAD = "| meaning | words |\n| --- | --- |\n"
FINISHED = {
    "stopped": "finished, or at the stop string",
    "natural": "finished",
    "stop_string": "at the stop string",
}


def table() -> str:
    """Return the rows: what is meant, and by which words."""
    rows: dict[str, list[str]] = {}
    for word, end in REASONS.items():
        meaning = end.reason.removesuffix(f" ({word})")
        kind = {"length": "cut", "failed": "failed"}.get(end.ending, "")
        said = f"{kind}: {meaning}" if kind else FINISHED[end.ending]
        rows.setdefault(said, []).append(f"`{word}`")
    return "".join(f"| {said} | {', '.join(words)} |\n" for said, words in rows.items())


def written(page: str) -> str:
    """Return the page with the table of the code."""
    before, _, rest = page.partition(HEAD)
    return before + HEAD + table() + rest[rest.index("\n- A failed reply") :]


def test_the_page_has_every_reason() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert written(page) == page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
