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

_OPTIONS: dict[str, Any] = {"fastmath": {"reassoc", "contract", "nsz", "arcp"}, "error_model": "numpy"}
"""Sums in any order, but no assumption that numbers are finite."""


def _compiled(kernel: Kernel) -> Kernel:
    """Compile at the first call; kept for later processes, beside this file or in the user's cache, if one can be."""
    try:
        return numba.njit(cache=True, **_OPTIONS)(kernel)  # type: ignore[no-any-return,unused-ignore]
    except RuntimeError:  # numba finds no folder that it may write to
        return numba.njit(**_OPTIONS)(kernel)  # type: ignore[no-any-return,unused-ignore]


@cache
def forward_kernel(components: int, channels: int) -> Kernel:
    """Return the kernel that sums messages for features of `components` 2 l + 1 and `channels` U.

    Its arguments: (E,) senders and receivers; (E, M, 2 l + 1) matrices; (M,) first column of the weights of each
    component of a message; (N, 2 l + 1, U) features; (E, W) weights; and (N, M, U), to which messages are added.
    """

    @_compiled
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

    return forward


@cache
def backward_kernel(components: int, channels: int) -> Kernel:
    """Return the kernel of the derivatives.

    Its arguments: as of `forward_kernel` up to the weights; (E, W) derivatives of the weights by the length of the
    edge; (N, M, U) derivatives by the sums; what it adds to, (N, 2 l + 1, U) derivatives by the features; and what it
    writes, (E, M, 2 l + 1) derivatives by the matrices and (E,) by the lengths.
    """

    @_compiled
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
        rows = len(column)
        together = rows // 4 * 4
        arriving = np.empty((rows, channels), values.dtype)
        for e in range(len(matrix)):
            sent, arrived, back = features[sender[e]], gradient[receiver[e]], by_features[sender[e]]
            mine, by_mine = matrix[e], by_matrix[e]
            by_length = zero
            for m in range(rows):
                row, given, into, k = mine[m], arrived[m], arriving[m], column[m]
                weights, rises = values[e, k : k + channels], slopes[e, k : k + channels]
                sum_ = zero
                for u in range(channels):
                    moved = row[0] * sent[0, u]
                    for c in range(1, components):
                        moved += row[c] * sent[c, u]
                    sum_ += moved * given[u] * rises[u]
                    into[u] = given[u] * weights[u]
                by_length += sum_
            by_distance[e] = by_length
            # Apart from the loop above, or the compiler takes one number at a time; four rows at a time, so that
            # what is sent, and what comes back, is read and written once for them.
            for m in range(0, together, 4):
                a0, a1, a2, a3 = arriving[m], arriving[m + 1], arriving[m + 2], arriving[m + 3]
                for c in range(components):
                    f0, f1, f2, f3 = mine[m, c], mine[m + 1, c], mine[m + 2, c], mine[m + 3, c]
                    part, into = sent[c], back[c]
                    s0 = s1 = s2 = s3 = zero
                    for u in range(channels):
                        into[u] += f0 * a0[u] + f1 * a1[u] + f2 * a2[u] + f3 * a3[u]
                        s0 += a0[u] * part[u]
                        s1 += a1[u] * part[u]
                        s2 += a2[u] * part[u]
                        s3 += a3[u] * part[u]
                    by_mine[m, c] = s0
                    by_mine[m + 1, c] = s1
                    by_mine[m + 2, c] = s2
                    by_mine[m + 3, c] = s3
            for m in range(together, rows):
                a0 = arriving[m]
                for c in range(components):
                    f0, part, into = mine[m, c], sent[c], back[c]
                    s0 = zero
                    for u in range(channels):
                        into[u] += f0 * a0[u]
                        s0 += a0[u] * part[u]
                    by_mine[m, c] = s0

    return backward
