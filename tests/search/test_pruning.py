"""The pruning rules: which go, by which rule, and against whom."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vprm_search.search import Pruning
from vprm_search.types import NodeRecord

sixteenths = st.integers(0, 16).map(lambda n: n / 16)
rules = st.builds(
    Pruning,
    below=st.none() | sixteenths,
    margin=st.none() | sixteenths,
    top_k=st.none() | st.integers(1, 5),
    keep_at_least=st.integers(0, 4),
)


def ranking(scores: list[float]) -> list[tuple[float, NodeRecord]]:
    ordered = sorted(scores, reverse=True)
    return [(score, NodeRecord(f"n{i}", "root", i)) for i, score in enumerate(ordered)]


@given(rules, st.lists(sixteenths, max_size=8))
def test_each_path_stays_or_goes_by_the_stated_rule(rule: Pruning, scores: list[float]) -> None:
    ranked = ranking(scores)
    keep, close = rule.apply(ranked)
    kept = {leaf.id for _, leaf in keep}
    reasons = {c.node: c.reason for c in close}
    assert kept.isdisjoint(reasons)
    assert kept | set(reasons) == {leaf.id for _, leaf in ranked}
    assert keep == [pair for pair in ranked if pair[1].id in kept]  # in order
    for rank, (score, leaf) in enumerate(ranked):
        beyond = rule.top_k is not None and rank >= rule.top_k
        safe = rank < rule.keep_at_least
        low = rule.below is not None and score < rule.below
        far = rule.margin is not None and score < ranked[0][0] - rule.margin
        word = "outranked" if beyond else "" if safe else "prune_below" if low else ""
        word = word or ("prune_margin" if far and not safe else "")
        assert reasons.get(leaf.id, "").partition(":")[0] == word
        if word == "outranked":
            assert reasons[leaf.id].endswith(ranked[rule.top_k - 1][1].id)  # type: ignore[operator]
        if word == "prune_margin":
            assert ranked[0][1].id in reasons[leaf.id]
