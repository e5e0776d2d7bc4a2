"""Computed responses from host packs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from defectnet.config import MODEL_GRID, STORAGE_GRID
from defectnet.crystal.pack import HostPack
from defectnet.crystal.plausible import guess_charges, likeness_on_site
from defectnet.crystal.responses import LEVELS, SUFFIX, HostResponses, save_responses
from defectnet.data.packs import find_packs
from defectnet.elements import INDEX, SYMBOLS
from defectnet.errors import SimulationError
from defectnet.inference.emulator import CellSource
from defectnet.processes import forking

FloatArray = NDArray[np.float64]

CELLS: Final = (21, 10)
"""Superposed cells for each dopant at each of `LEVELS`: the first as many as a source samples wave vectors."""

ROOM: Final = 0.7
"""Largest share of the sites of one element that a dopant takes."""

UNSTABLE: Final = 0.02
"""Share of imaginary modes beyond the host's from which on a cell is left out: a mean may hold a few of them, which a
single spectrum that is compared may not."""

_FINER: Final = round(MODEL_GRID.width / STORAGE_GRID.width)


def compute_responses(
    pack: HostPack,
    dopants: Sequence[str] | None = None,
    *,
    seed: int = 0,
    cells: tuple[int, int] = CELLS,
    source: CellSource | None = None,
) -> HostResponses:
    """Compute the responses of a pack; some 10 ms for each cell.

    Args:
        pack: Host and its substitutions.
        dopants: Names such as ``Al@Ga``, each element once; by default all of the pack, each on its likeliest site.
        seed: Of the placements.
        cells: See `CELLS`.
        source: Of the pack's cells with these dopants, if there is one already.

    Raises:
        SimulationError: No dopant is left: all cells with any of them are unstable.
    """
    names = likeliest_sites(pack, pack.dopants if dopants is None else dopants)
    if source is None:
        source = CellSource(pack, names)
    source = source.only(names, unstable=UNSTABLE)
    rng = np.random.default_rng(seed)
    kept: list[str] = []
    reached, changes = [], []
    place = {symbol: row for row, symbol in enumerate(source.elements)}
    host_symbols = tuple(sorted({SYMBOLS[int(z)] for z in pack.host.primitive.numbers}, key=INDEX.__getitem__))
    for k, name in enumerate(names):
        rows = [place[symbol] for symbol in (*host_symbols, name.partition("@")[0])]
        levels = []
        for level, count in zip(LEVELS, cells, strict=True):
            wished = np.zeros((count, len(names)))
            wished[:, k] = min(level, ROOM * source.room[k])
            try:
                found = source.draw(wished, rng)
            except SimulationError:  # every cell is unstable
                break
            amount = found.concentration[:, k]
            change = (found.doped - found.pristine[found.source])[:, rows].mean(0) / amount.mean()
            levels.append((amount.mean(), on_model_grid(change)))
        if levels:
            kept.append(name)
            levels += levels[:1] * (len(LEVELS) - len(levels))
            reached.append([amount for amount, _ in levels])
            changes.append([change for _, change in levels])
    if not kept:
        raise SimulationError(
            f"{pack.host.id}: cells with {', '.join(names) or 'a dopant'} are unstable", fix="Name other dopants"
        )
    host = on_model_grid(source.pristine.mean(0)[[place[symbol] for symbol in host_symbols]])
    return HostResponses(
        pack.host.id,
        pack.host.formula,
        pack.host.potential,
        pack.host.potential_sha256,
        pack.host.band_edge_mev,
        host_symbols,
        tuple(kept),
        np.array(reached),
        host,
        np.array(changes),
    )


def likeliest_sites(pack: HostPack, dopants: Sequence[str]) -> tuple[str, ...]:
    """Return dopants such as ``Al@Ga``, of those with one dopant the one on the site where it is likeliest."""
    charges = guess_charges(pack.amounts)
    best: dict[str, str] = {}
    for name in dopants:
        dopant, _, replaced = name.partition("@")
        other = best.get(dopant)
        if other is None or likeness_on_site(dopant, replaced, charges) > likeness_on_site(dopant, other, charges):
            best[dopant] = replaced
    return tuple(f"{dopant}@{replaced}" for dopant, replaced in best.items())


def on_model_grid(dos: FloatArray) -> FloatArray:
    """Return (..., L) DOS on `MODEL_GRID` of (..., 600) on `STORAGE_GRID`; what lies above is left out."""
    bins = MODEL_GRID.bins * _FINER
    return np.asarray(dos[..., :bins].reshape(*dos.shape[:-1], MODEL_GRID.bins, _FINER).mean(-1))


def make_responses(
    packs: str | Path | Sequence[str | Path], out: Path, *, workers: int = 1
) -> Iterator[int | tuple[str, str]]:
    """Compute the responses of many packs, a file each; those that are there are kept.

    Args:
        packs: See `defectnet.data.packs.find_packs`.
        out: Folder; made if needed.
        workers: Processes.

    Yields:
        How many hosts are left to do; then, as each is done, its id and why it has none, or an empty text.
    """
    if workers < 1:
        raise SimulationError(f"workers is {workers}", fix="Use 1 or more")
    paths = [(one.folder, out / f"{one.id}{SUFFIX}") for one in find_packs(packs)]
    wanted = [one for one in paths if not one[1].exists()]
    yield len(wanted)
    if workers == 1:
        yield from map(_make, wanted)
        return
    with ProcessPoolExecutor(workers, mp_context=forking(__name__)) as pool:
        for future in as_completed([pool.submit(_make, one) for one in wanted]):
            yield future.result()


def _make(wanted: tuple[Path, Path]) -> tuple[str, str]:
    folder, path = wanted
    with threadpool_limits(1):
        try:
            save_responses(path, compute_responses(HostPack.load(folder)))
        except SimulationError as error:
            return path.name.removesuffix(SUFFIX), str(error)
    return path.name.removesuffix(SUFFIX), ""
