"""Every option of a strategy or a selector is documented with its default."""

from __future__ import annotations

import re

import pytest
from pydantic import BaseModel

from vprm_search import search

KINDS = [
    kind
    for name in search.__all__
    if isinstance(kind := getattr(search, name), type) and issubclass(kind, BaseModel)
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_option_is_documented_with_its_default(kind: type[BaseModel]) -> None:
    said = {}
    for base in reversed(kind.__mro__):
        _, _, arguments = (base.__doc__ or "").partition("Args:\n")
        said |= dict(re.findall(r"^\s{8}(\w+): ((?:.*(?:\n\s{12,})?)+)", arguments, re.MULTILINE))
    assert set(kind.model_fields) <= set(said)
    for name, option in kind.model_fields.items():
        assert option.is_required() or re.search(r"Default:\s", said[name])
    assert len(KINDS) >= 15
