"""What examples share, and parts chosen by hashes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from das_gym.data.splits import hash_order, linked_groups

KEYS = st.lists(st.lists(st.sampled_from("abcdefghij"), max_size=3), max_size=20)


def test_hash_order_is_stable():
    assert hash_order(["a", "b", "c", "d", "a"]) == hash_order(["d", "c", "b", "a"])
    assert hash_order(map(str, range(8))) == ["6", "2", "4", "0", "5", "3", "7", "1"]


@given(KEYS)
def test_groups_share_nothing_and_cannot_be_divided(keys: list[list[str]]):
    groups = linked_groups(keys)
    for first, one in enumerate(keys):
        for second, other in enumerate(keys):
            if set(one) & set(other):
                assert groups[first] == groups[second]
    for group in set(groups):
        members = [set(own) for own, of in zip(keys, groups, strict=True) if of == group]
        reached = members[0]
        for _ in members:
            reached = reached.union(*(own for own in members if own & reached))
        assert len(members) == 1 or all(own & reached for own in members)
