"""The page for users and the table say the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from vprm_search.scoring.families import DEFAULT_FAMILY, FAMILIES

PAGE = (Path(__file__).parents[2] / "docs" / "families.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_row_is_on_the_page(name: str) -> None:
    row = FAMILIES[name]
    table = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |"))
    assert table.rstrip(" |").endswith(row.aggregation)
    calls = {DEFAULT_FAMILY: '`TransformersScorer.from_pretrained("', "judge": "`JudgeScorer("}
    call = calls.get(name, f'family="{name}"')
    assert call in PAGE
    for repository in row.public:  # the very line of a checkpoint says how it is loaded
        (line,) = [
            line for line in PAGE.splitlines() if line.startswith("|") and repository in line
        ]
        assert call in line
        assert ("family=" in line) == (name not in calls)
    if row.system_prompt_source:
        words = row.system_prompt_source.split()
        assert all(word in PAGE for word in words)
