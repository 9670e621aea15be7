"""docs/steps.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from vprm_search.steps import DEFAULT_LIMITS, SPLITTERS
from vprm_search.steps.paragraphs import is_greeting
from vprm_search.steps.splitters import TOKENS_PER_STEP

TEXT = (Path(__file__).parents[2] / "docs" / "steps.md").read_text(encoding="utf-8")


def test_every_splitter_is_listed() -> None:
    listed = re.findall(r"^\| `([a-z-]+)` \|", TEXT, re.MULTILINE)
    assert sorted(listed) == sorted([*SPLITTERS, "auto"])
    assert f"every {TOKENS_PER_STEP} tokens" in TEXT


def test_the_limits_are_those_of_the_code() -> None:
    limits = DEFAULT_LIMITS.model_dump()
    for name in ("max_steps", "max_step_chars"):
        assert f"{name}` ({limits[name]:,})" in TEXT
    assert f"{limits['max_text_bytes']:,} bytes" in TEXT


def test_the_greeting_is_one() -> None:
    (greeting,) = re.findall(r'greets or announces \("([^"]+)"\)', TEXT)
    assert is_greeting(greeting)
