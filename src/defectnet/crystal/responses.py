"""Computed responses: what each substitution of a host pack changes of the spectrum, at a few concentrations.

They are what a network reads of a known crystal (`defectnet.batch.Computed`): means over superposed cells, in units of
the pack's own band edge, before any instrument. Elements are kept apart, for a measurement weights them.

Shape letters: K dopants, C levels of concentration, H elements of the host, L the bins of `MODEL_GRID`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from defectnet.batch import Computed
from defectnet.config import MODEL_GRID
from defectnet.crystal.spectra import element_weights
from defectnet.elements import INDEX, VOCABULARY
from defectnet.errors import ShardError, SpectrumError
from defectnet.files import replacing
from defectnet.spectrum import KINDS

FloatArray = NDArray[np.float64]

SCHEMA_VERSION: Final = 1

LEVELS: Final = (0.03, 0.1)
"""Concentrations, dopant atoms over all atoms, at which responses are computed: one where dopants act one by one, one
where they do not. Less where the crystal has no room for as many; the first again where so many are unstable."""

READABLE: Final = ("total", "neutron-weighted")
"""Kinds of DOS that responses are weighted for; which element others are projected on, a batch does not say."""

SUFFIX: Final = ".safetensors"


@dataclass(frozen=True, eq=False)
class HostResponses:
    """Computed responses of one host.

    Attributes:
        id, formula, potential, potential_sha256: Whose pack they were made from, and what had computed that.
        edge_mev: Its band edge, unit of the relative energies.
        host_elements: H symbols. dopants: K names such as ``Al@Ga``, each element once.
        concentration: (K, C) reached in the cells.
        host: (H, L) projected DOS; areas are atomic fractions.
        change: (K, C, H + 1, L) change of the projected DOS of each host element, and last of the dopant, over the
            concentration.
    """

    id: str
    formula: str
    potential: str
    potential_sha256: str
    edge_mev: float
    host_elements: tuple[str, ...]
    dopants: tuple[str, ...]
    concentration: FloatArray
    host: FloatArray
    change: FloatArray

    @property
    def elements(self) -> tuple[int, ...]:
        """Positions of the dopants in the vocabulary."""
        return tuple(INDEX[name.partition("@")[0]] for name in self.dopants)

    @property
    def source(self) -> str:
        """Where they come from."""
        return f"{self.id}, computed with {self.potential}"

    def computed(self, kind: int) -> Computed:
        """Return what a network reads of them, of one question.

        Args:
            kind: Of the spectra, index into `defectnet.spectrum.KINDS`.

        Raises:
            SpectrumError: The DOS are projected: which element a network's question is about, it does not say.
        """
        if KINDS[kind] not in READABLE:
            raise SpectrumError(
                f"computed responses are not read beside a {KINDS[kind]} DOS", fix=f"Use {' or '.join(READABLE)} DOS"
            )
        return computed_batch([self], [kind], known_elements([self]))

    def weighted(self, kind: str) -> tuple[FloatArray, FloatArray]:
        """Return the weighted host (L,), of unit area, and its changes per concentration (K, C, L).

        Args:
            kind: ``total`` or ``neutron-weighted``, see `defectnet.spectrum.KINDS`.
        """
        weights = element_weights(self.host_elements, kind, None)
        own = np.array([element_weights((name.partition("@")[0],), kind, None)[0] for name in self.dopants])
        host = weights @ self.host
        change = np.einsum("h,kchl->kcl", weights, self.change[:, :, :-1]) + own[:, None, None] * self.change[:, :, -1]
        c = self.concentration[..., None]
        doped = host + c * change
        area, doped_area = host.sum(), doped.sum(-1, keepdims=True)
        return host / (area * MODEL_GRID.width), (doped / doped_area - host / area) / (c * MODEL_GRID.width)


def known_elements(chosen: Sequence[HostResponses | None]) -> NDArray[np.bool_]:
    """Return the (B, E) elements that responses are of."""
    known = np.zeros((len(chosen), len(VOCABULARY)), dtype=np.bool_)
    for row, one in zip(known, chosen, strict=True):
        if one is not None:
            row[list(one.elements)] = True
    return known


def computed_batch(
    chosen: Sequence[HostResponses | None],
    kinds: Sequence[int],
    known: NDArray[np.bool_],
    change: Callable[[int, FloatArray, FloatArray], tuple[FloatArray, FloatArray]] | None = None,
) -> Computed:
    """Return what a network reads of responses.

    Args:
        chosen: Of each of B rows; None where there are none.
        kinds: How the rows are measured, see `defectnet.spectrum.KINDS`; of those in `READABLE` where there are some.
        known: (B, E) elements whose response is shown, among `known_elements`.
        change: Gets the number of a row, the host (L,) and the responses (K, C, L), and returns what is shown of them.
    """
    dos = np.zeros((len(chosen), MODEL_GRID.bins), dtype=np.float32)
    response = np.zeros((*known.shape, len(LEVELS), MODEL_GRID.bins), dtype=np.float32)
    concentration = np.zeros((*known.shape, len(LEVELS)), dtype=np.float32)
    for i, one in enumerate(chosen):
        if one is not None and known[i].any():
            found = _weighted(one, KINDS[kinds[i]])
            dos[i], response[i, one.elements] = found if change is None else change(i, *found)
            concentration[i, one.elements] = one.concentration
    response[~known], concentration[~known] = 0.0, 0.0
    return Computed(*map(torch.from_numpy, (dos, response, concentration, known)))


@lru_cache(maxsize=512)
def _weighted(responses: HostResponses, kind: str) -> tuple[FloatArray, FloatArray]:
    return responses.weighted(kind)


def save_responses(path: Path, responses: HostResponses) -> None:
    """Write the responses of a host, whole or not at all; DOS in half precision."""
    entries = {
        name: getattr(responses, name)
        for name in ("id", "formula", "potential", "potential_sha256", "edge_mev", "host_elements", "dopants")
    }
    tensors = {
        "concentration": torch.from_numpy(responses.concentration).float(),
        "host": torch.from_numpy(responses.host).half(),
        "change": torch.from_numpy(responses.change).half(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"defectnet": json.dumps({"schema_version": SCHEMA_VERSION, **entries})})


def load_responses(path: Path) -> HostResponses:
    """Read what `save_responses` wrote.

    Raises:
        ShardError: The file is damaged, of another schema or another grid.
    """
    fix = "Make it again with `defectnet host responses`"
    try:
        with safe_open(path, "numpy") as file:
            entries: dict[str, Any] = json.loads((file.metadata() or {})["defectnet"])
            arrays = {name: file.get_tensor(name).astype(np.float64) for name in ("concentration", "host", "change")}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ShardError(f"{path} holds no computed responses", why=str(error)[:160], fix=fix) from error
    if entries.pop("schema_version", None) != SCHEMA_VERSION:
        raise ShardError(f"{path} has another schema of computed responses", fix=fix)
    try:
        for name in ("host_elements", "dopants"):
            entries[name] = tuple(entries[name])
        found = HostResponses(**entries, **arrays)
        elements, shape = len(found.host_elements), (len(found.dopants), len(LEVELS))
        known = all(symbol in INDEX for name in (*found.host_elements, *found.dopants) for symbol in name.split("@"))
    except (TypeError, KeyError) as error:
        raise ShardError(f"{path} holds no computed responses", why=str(error)[:160], fix=fix) from error
    right = (
        known
        and found.host.shape == (elements, MODEL_GRID.bins)
        and found.concentration.shape == shape
        and found.change.shape == (*shape, elements + 1, MODEL_GRID.bins)
        and all(np.isfinite(array).all() for array in arrays.values())
        and bool((found.concentration > 0).all())
    )
    if not right:
        raise ShardError(f"{path}: shapes or numbers of the responses cannot be", fix=fix)
    return found


def read_responses(folder: str | Path) -> dict[str, HostResponses]:
    """Read the responses of a folder, by the id of the host.

    Raises:
        ShardError: There are none, or a file is damaged.
    """
    paths = sorted(Path(folder).glob(f"*{SUFFIX}"))
    if not paths:
        raise ShardError(f"{folder} holds no computed responses", fix="Make some with `defectnet host responses`")
    return {one.id: one for one in map(load_responses, paths)}
