"""Noise in a binary tree over sums: how prefixes of many rounds stay accurate without any claim about sampling.

Sums are the leaves of a tree of fixed size, and every node has Gaussian noise of its own. What is released after `t`
sums is their total with the noise of the few nodes that cover the first `t` leaves: as many as `t` has ones in binary,
where independent noise would be that of `t` sums. Since what is released is made by adding, each sum is released with
the noise of the node that its leaf completes, less that of the nodes which this one replaces.

Rules: a device is in at most one sum of a tree, so that its report is in at most one node of each level; after its last
leaf a tree is left as it is, and the next one begins. A node is named by the sum that completed it, whose groups are
random: a history that went back and took another sum instead gets other noise, since the same noise on two sums would
give their difference away.

Source: Kairouz et al. 2021, Practical and private (deep) learning without sampling or shuffling (arXiv 2103.00039),
with its restarts of the tree; Dwork et al. 2010 and Chan, Shi and Song 2011 for the tree; Denisov et al. 2022 (arXiv
2202.08312) for sums that depend on what was released before.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedrecon.wire.digests import digest_of


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the tree.

    Attributes:
        level: Its leaves are two to the power of it.
        name: 32 bytes, by which its noise is drawn.
    """

    level: int
    name: bytes


@dataclass(frozen=True, slots=True)
class NoiseTree:
    """A tree as far as it has grown.

    Attributes:
        leaves: Sums so far.
        nodes: What covers them, the oldest first: levels fall from one to the next.
        added: The node that the last sum was released with.
        removed: The nodes that it replaced.
    """

    leaves: int = 0
    nodes: tuple[Node, ...] = ()
    added: Node | None = None
    removed: tuple[Node, ...] = ()


def grow(tree: NoiseTree, sum_name: bytes, most_leaves: int) -> NoiseTree:
    """Returns a tree with one more sum; a full one is followed by a new one.

    Args:
        tree: As it stands.
        sum_name: Bytes that no other sum has.
        most_leaves: Sums of a whole tree.

    Example:
        >>> tree = NoiseTree()
        >>> for number in range(4):
        ...     tree = grow(tree, bytes([number]), 4)
        ...     print([node.level for node in tree.nodes], len(tree.removed))
        [0] 0
        [1] 1
        [1, 0] 0
        [2] 2
    """
    before = tree if tree.leaves < most_leaves else NoiseTree()
    level, left = 0, before.nodes
    while left and left[-1].level == level:
        level, left = level + 1, left[:-1]
    added = Node(level, digest_of(b"fedrecon node of noise 1" + level.to_bytes(1, "little") + sum_name))
    return NoiseTree(before.leaves + 1, (*left, added), added, before.nodes[len(left) :])


def levels(leaves: int) -> int:
    """Returns the most nodes of a tree that one leaf is in: what a report can move is as many times the clip norm.

    Example:
        >>> [levels(leaves) for leaves in (0, 1, 2, 3, 4, 7, 8)]
        [0, 1, 2, 2, 3, 3, 4]
    """
    return leaves.bit_length()
