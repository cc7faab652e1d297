"""Trees of noise: what they say of themselves, against sums that are added up one by one."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from fedrecon.coordinator.noise_trees import NoiseTree, grow, levels


@given(st.integers(1, 70), st.integers(1, 20))
def test_a_prefix_has_the_noise_of_the_few_nodes_that_cover_it(count: int, most: int) -> None:
    tree, released = NoiseTree(), Counter[bytes]()
    for number in range(count):
        before = tree
        tree = grow(tree, number.to_bytes(2, "little"), most)
        if before.leaves == most:
            assert (tree.leaves, tree.removed) == (1, ())
            released.clear()
        assert tree.added is not None
        released[tree.added.name] += 1
        released.subtract(node.name for node in tree.removed)
        assert {name for name, times in released.items() if times} == {node.name for node in tree.nodes}
        assert set(released.values()) <= {0, 1}
        assert sum(1 << node.level for node in tree.nodes) == tree.leaves == number % most + 1
        assert len(tree.nodes) == tree.leaves.bit_count()


@given(st.integers(1, 200))
def test_a_sum_is_in_no_more_nodes_than_is_accounted_for(most: int) -> None:
    tree, covers = NoiseTree(), Counter[int]()
    for number in range(most):
        tree = grow(tree, number.to_bytes(2, "little"), most)
        assert tree.added is not None
        covers.update(range(tree.leaves - (1 << tree.added.level), tree.leaves))
    assert max(covers.values()) <= levels(most)


def test_another_sum_in_the_same_place_gets_another_node() -> None:
    tree = grow(NoiseTree(), b"one", 8)
    kept, instead = grow(tree, b"two", 8), grow(tree, b"another", 8)
    assert kept.added is not None
    assert instead.added is not None
    assert kept.added.name != instead.added.name
    assert kept.removed == instead.removed
