"""docs/doors.md: every example, test and page that its table names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "doors.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`((?:examples|tests|integrations)/[^`]*)`", TEXT)))


@pytest.mark.parametrize("name", NAMED)
def test_what_the_table_names_is_there(name: str) -> None:
    assert (ROOT / name).exists()


def test_every_example_has_a_door() -> None:
    files = [f for f in (ROOT / "examples").iterdir() if f.suffix in (".py", ".ipynb")]
    assert {f"examples/{file.name}" for file in files} <= set(NAMED)
