"""Random numbers that depend on names alone."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray

from defectnet.errors import ConfigError


class _Words(ISeedSequence):
    """Seeds a generator with given words, which saves NumPy's own mixing: a hash has done that already."""

    def __init__(self, digest: bytes) -> None:
        self._words = np.frombuffer(digest, dtype="<u8").astype(np.uint64)

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[np.uint64]:
        return self._words[:n_words]


def checked_seed(seed: int) -> int:
    """Return a seed that NumPy takes.

    Raises:
        ConfigError: It is negative.
    """
    if seed < 0:
        raise ConfigError(f"seed is {seed}", fix="Use a whole number from 0 on")
    return seed


def row_rng(*keys: str | int) -> np.random.Generator:
    """Return a generator fixed by its keys, the same on every machine and in every process.

    Evaluation uses the row's id (and a purpose) alone; training adds the seed and the epoch.
    """
    digest = hashlib.sha256("\x1f".join(map(str, keys)).encode()).digest()
    # NumPy documents that any ISeedSequence will do; its type stubs know SeedSequence alone.
    return np.random.Generator(np.random.PCG64(_Words(digest)))  # type: ignore[arg-type]
