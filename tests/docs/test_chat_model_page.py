"""What the page on the guided model shows is run as it stands there, on the packaged models."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "chat_model.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_code_of_the_page_prints_what_stands_below_it() -> None:
    pytest.importorskip("torch")
    shown = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(shown) == 2
    given: dict[str, Any] = {}
    for code, expected in shown:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(code, "docs/chat_model.md", "exec"), given)
        printed = out.getvalue().strip()
        for part in expected.split("…\n"):  # in this order, what the page leaves out in between
            at = printed.find(part.strip())
            assert at >= 0, (part, printed)
            printed = printed[at + len(part.strip()) :]
        assert printed == ""
