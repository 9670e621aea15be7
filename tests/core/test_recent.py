"""A bounded memory keeps what was used last."""

from __future__ import annotations

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from vprm_search.recent import Recent

CALLS = st.lists(
    st.tuples(st.sampled_from(["get", "put", "forget"]), st.integers(0, 6), st.integers(0, 99))
)


@given(CALLS, st.integers(1, 4))
def test_it_keeps_what_an_ordered_dict_would(calls: list[tuple[str, int, int]], most: int) -> None:
    recent: Recent[int, int] = Recent(most)
    oracle: OrderedDict[int, int] = OrderedDict()
    for name, key, value in calls:
        if name == "get":
            assert recent.get(key) == oracle.get(key)
        elif name == "forget":
            recent.forget(key)
            oracle.pop(key, None)
        else:
            recent.put(key, value)
            oracle[key] = value
        if key in oracle:
            oracle.move_to_end(key)
        while len(oracle) > most:
            oracle.popitem(last=False)
        assert recent.items() == list(oracle.items())
        assert len(recent) == len(oracle)
        assert (key in recent) == (key in oracle)
