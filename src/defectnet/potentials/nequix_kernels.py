"""The messages of `nequix_network` on a processor, compiled by numba: some four times as fast as by torch's operations.

Everything of an edge stays in the first cache here. The number of components and channels are constants of the
compiled code, which is why there is one kernel for each.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numba  # type: ignore[import-untyped,import-not-found,unused-ignore]
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Kernel = Callable[..., None]

_compiled = numba.njit(fastmath={"reassoc", "contract", "nsz", "arcp"}, error_model="numpy")
"""Sums in any order, but no assumption that numbers are finite."""


@cache
def forward_kernel(components: int, channels: int) -> Kernel:
    """Return the kernel that sums messages for features of `components` 2 l + 1 and `channels` U.

    Its arguments: (E,) senders and receivers; (E, M, 2 l + 1) matrices; (M,) first column of the weights of each
    component of a message; (N, 2 l + 1, U) features; (E, W) weights; and (N, M, U), to which messages are added.
    """

    @_compiled  # type: ignore[untyped-decorator,unused-ignore]
    def forward(
        sender: Array, receiver: Array, matrix: Array, column: Array, features: Array, values: Array, total: Array
    ) -> None:
        for e in range(len(matrix)):
            sent, out = features[sender[e]], total[receiver[e]]
            for m in range(len(column)):
                row, into, weights = matrix[e, m], out[m], values[e, column[m] : column[m] + channels]
                for u in range(channels):
                    moved = row[0] * sent[0, u]
                    for c in range(1, components):
                        moved += row[c] * sent[c, u]
                    into[u] += moved * weights[u]

    return forward  # type: ignore[no-any-return,unused-ignore]


@cache
def backward_kernel(components: int, channels: int) -> Kernel:
    """Return the kernel of the derivatives.

    Its arguments: as of `forward_kernel` up to the weights; (E, W) derivatives of the weights by the length of the
    edge; (N, M, U) derivatives by the sums; and what it adds to: (N, 2 l + 1, U) derivatives by the features, (E, M,
    2 l + 1) by the matrices, (E,) by the lengths.
    """

    @_compiled  # type: ignore[untyped-decorator,unused-ignore]
    def backward(
        sender: Array,
        receiver: Array,
        matrix: Array,
        column: Array,
        features: Array,
        values: Array,
        slopes: Array,
        gradient: Array,
        by_features: Array,
        by_matrix: Array,
        by_distance: Array,
    ) -> None:
        zero = values.dtype.type(0)
        arriving = np.empty(channels, values.dtype)
        for e in range(len(matrix)):
            sent, arrived, back = features[sender[e]], gradient[receiver[e]], by_features[sender[e]]
            by_length = zero
            for m in range(len(column)):
                row, given, k = matrix[e, m], arrived[m], column[m]
                weights, rises = values[e, k : k + channels], slopes[e, k : k + channels]
                sum_ = zero
                for u in range(channels):
                    moved = row[0] * sent[0, u]
                    for c in range(1, components):
                        moved += row[c] * sent[c, u]
                    sum_ += moved * given[u] * rises[u]
                    arriving[u] = given[u] * weights[u]
                by_length += sum_
                # Apart from the loop above, or the compiler takes one number at a time.
                for c in range(components):
                    factor, mine, into = row[c], sent[c], back[c]
                    sum_ = zero
                    for u in range(channels):
                        into[u] += factor * arriving[u]
                        sum_ += arriving[u] * mine[u]
                    by_matrix[e, m, c] += sum_
            by_distance[e] += by_length

    return backward  # type: ignore[no-any-return,unused-ignore]
