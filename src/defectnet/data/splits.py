"""Which split a host belongs to: a function of its set of elements and of nothing else.

Splitting by spectrum, or by crystal, would put the same host, or a polymorph of it, on both sides.
"""

from __future__ import annotations

import hashlib
from typing import Final, Literal

from defectnet.elements import chemical_system as join_elements

Split = Literal["train", "val", "test"]

SPLITS: Final[tuple[Split, ...]] = ("train", "val", "test")
"""Names of the splits: 80, 10 and 10 % of the chemical systems."""

HELD_OUT: Final[frozenset[str]] = frozenset(
    {"Si", "Ge", "Ge-Si", "B-Mg", "As-Ga", "Ga-P", "Cd-Te", "Fe", "Fe-Ni"},
)
"""Chemical systems of the named validation systems (local modes, alloys and measured pairs): always test."""


def split_of(chemical_system: str) -> Split:
    """Return the split of a chemical system, by sha256 of its name.

    Args:
        chemical_system: Host elements joined by dashes, for instance ``As-Ga``; their order does not matter.
    """
    name = join_elements(chemical_system.split("-"))
    if name in HELD_OUT:
        return "test"
    fraction = int.from_bytes(hashlib.sha256(name.encode("ascii")).digest()[:8], "big") / 2**64
    return "train" if fraction < 0.8 else "val" if fraction < 0.9 else "test"
