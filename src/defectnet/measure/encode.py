"""From a pair of spectra and a formula to the tensors that networks see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from defectnet.batch import Batch
from defectnet.config import Grid
from defectnet.elements import VOCABULARY, composition, multi_hot, parse_formula
from defectnet.errors import FormulaError, SpectrumError
from defectnet.measure import plausible
from defectnet.measure.curves import cumulative, integral_errors, integrals, rebin
from defectnet.measure.edge import EDGE_THRESHOLD, band_edges
from defectnet.spectrum import KINDS, Spectrum

_CELL, _CLEAR = 0.02, 4.0
"""Width of the cells, in energies below which 95 % of a DOS lie, in which signal is weighed against errors, and the
standard deviations that it must have."""


@dataclass(frozen=True)
class Examined:
    """A pair on the common grid, and what can be said of it before it is answered.

    Attributes:
        batch: A batch of one.
        error: (2, L) standard deviations of host and doped sample there, stated in their files or told by their
            scatter, 0 where one is not known; None where neither is.
        warnings: What is not plausible, one sentence each.
        unchanged: Why host and doped sample are taken for the same: they do not differ beyond their errors; empty
            where they do, or errors are not known.
        unit: Energy unit that host and doped sample were read in, one or two.
        kind: Kind of DOS, and the element.
        kind_told: Whether somebody said so of both.
    """

    batch: Batch
    error: NDArray[np.float32] | None
    warnings: tuple[str, ...]
    unchanged: str
    unit: str
    kind: str
    kind_told: bool


def examine_pair(
    host: Spectrum,
    doped: Spectrum,
    formula: str,
    *,
    grid: Grid,
    candidates: Sequence[str] | None = None,
    edge_mev: float | None = None,
) -> Examined:
    """Encode a pair, and look at whether it can be what it is said to be; arguments and errors as `encode_pair`."""
    batch = encode_pair(host, doped, formula, grid=grid, candidates=candidates, edge_mev=edge_mev)
    edge = float(batch.edge_mev[0])
    shared = plausible.overlap(host, doped)
    remarks = [
        plausible.edge_warning(edge, formula, host.unit, projected=host.kind == "projected"),
        f"implausible: host and doped sample share only {shared:.0%} of their area: are they of one crystal, and is "
        "the unit of both right?"
        if shared < plausible.ALIKE
        else None,
        plausible.tail_warning(host, doped, edge),
        plausible.floor_warning(host, edge, "host"),
        plausible.floor_warning(doped, edge, "doped spectrum"),
        *dict.fromkeys(filter(None, (host.remark, doped.remark))),
        plausible.reach_warning(
            float(doped.energy_mev[-1]), edge, formula, batch.candidates[0].numpy(), named=candidates is not None
        ),
    ]
    tested = plausible.change_within_errors(host, doped, edge)
    unchanged = ""
    if tested is not None and tested[1] >= plausible.SIGNIFICANT:
        stated = "stated errors" if host.error is not None or doped.error is not None else "noise"
        test = f"chi-square {tested[0]:.2f} per bin, p-value {tested[1]:.2g}"
        unchanged = f"the two spectra do not differ beyond their {stated} ({test})"
    element = host.element or doped.element
    return Examined(
        batch,
        _errors(host, doped, edge, grid),
        tuple(remark for remark in remarks if remark),
        unchanged,
        " and ".join(dict.fromkeys((host.unit, doped.unit))),
        f"{host.kind}{f' ({element})' if element else ''}",
        host.kind_told and doped.kind_told,
    )


def _errors(host: Spectrum, doped: Spectrum, edge_mev: float, grid: Grid) -> NDArray[np.float32] | None:
    """Return the (2, L) errors of a pair of unit area on the grid."""
    found = [plausible.noise_of(spectrum, edge_mev) for spectrum in (host, doped)]
    if found == [None, None]:
        return None
    errors = np.zeros((2, grid.bins), dtype=np.float32)
    for row, spectrum, noise in zip(errors, (host, doped), found, strict=True):
        if noise is not None:
            reach = spectrum.energy_mev <= grid.reach * edge_mev
            area = float(np.trapezoid(spectrum.dos[reach], spectrum.energy_mev[reach]))
            row[:] = integral_errors(spectrum.energy_mev, noise[0], grid.edges * edge_mev) / (area * grid.width)
    return errors


def encode_pair(
    host: Spectrum,
    doped: Spectrum,
    formula: str,
    *,
    grid: Grid,
    candidates: Sequence[str] | None = None,
    edge_mev: float | None = None,
) -> Batch:
    """Check a pair and put it on the common grid: energies relative to the host's band edge.

    The two spectra need neither the same grid nor the same unit.

    Args:
        host: DOS of the pristine crystal.
        doped: DOS of the doped sample, of the same kind.
        formula: Formula of the host.
        grid: Relative energies of the network.
        candidates: Elements that may be dopants; None asks about every element that is not in the host.
        edge_mev: The host's band edge, where it is known better than its spectrum tells; None reads it from there.

    Returns:
        A batch of one.

    Raises:
        SpectrumError: The spectra do not belong together, or a grid ends too early.
        FormulaError: The formula or a candidate cannot be used.
    """
    amounts = parse_formula(formula)
    mask = candidate_mask(formula, candidates)
    _check_pair(host, doped, tuple(amounts), formula)
    edge = host_edge_mev(host) if edge_mev is None else _checked_edge(host, edge_mev)
    _check_reach(host, doped, edge)
    _check_plausible(host, doped, edge)
    curves = [on_grid(spectrum, edge, grid) for spectrum in (host, doped)]
    return Batch(
        host=torch.from_numpy(curves[0])[None],
        doped=torch.from_numpy(curves[1])[None],
        edge_mev=torch.tensor([edge], dtype=torch.float32),
        composition=torch.from_numpy(composition(formula).astype(np.float32))[None],
        candidates=torch.from_numpy(mask)[None],
        candidates_given=torch.tensor([candidates is not None]),
        kind=torch.tensor([KINDS.index(host.kind)]),
    )


def host_edge_mev(host: Spectrum) -> float:
    """Read a host's band edge from its spectrum, see `band_edges`; meV.

    Where errors are known, what does not stand out of them at the upper end does not count.

    Raises:
        SpectrumError: The points end below the edge.
    """
    energy, dos = host.energy_mev, host.dos
    if host.error is not None:
        total = cumulative(energy, dos)
        end = float(energy[np.argmax(total >= 0.95 * total.max())])
        cells = np.linspace(energy[0], energy[-1], max(int((energy[-1] - energy[0]) / (_CELL * end)), 8) + 1)
        signal = np.diff(integrals(energy, dos, total, cells))
        clear = np.flatnonzero(signal > _CLEAR * integral_errors(energy, host.error, cells))
        pairs = clear[1:][np.diff(clear) == 1]  # one alone may be an error that is too small
        if len(pairs):
            dos = np.where(energy > cells[pairs[-1] + 1], 0.0, dos)
    return float(band_edges(energy, dos[None], source=_role("host", host))[0])


def on_grid(spectrum: Spectrum, edge_mev: float, grid: Grid) -> NDArray[np.float32]:
    """Put a spectrum on (grid.bins,) relative energies, see `rebin`.

    Args:
        spectrum: Host or doped sample.
        edge_mev: The host's band edge, for the doped sample too.
        grid: Relative energies.

    Raises:
        SpectrumError: Nothing lies on the grid.
    """
    return rebin(spectrum.energy_mev, spectrum.dos, np.asarray(edge_mev), grid)


def candidate_mask(formula: str, candidates: Sequence[str] | None) -> NDArray[np.bool_]:
    """Return the (E,) mask of elements in question.

    An element of the host cannot be told from itself, so it is never a candidate.

    Raises:
        FormulaError: Candidates are empty, named twice, outside the vocabulary, or elements of the host.
    """
    hosts = list(parse_formula(formula))
    if candidates is None:
        return ~multi_hot(hosts)
    if isinstance(candidates, str):
        raise FormulaError(f"candidates is the text {candidates!r}", fix='Give a list such as ["Al", "In"]')
    candidates = [str(getattr(one, "symbol", one)) for one in candidates]  # of pymatgen's Element, too
    if not candidates:
        raise FormulaError("candidates is empty", fix="Name one element at least, or leave it out to ask about all")
    mask = multi_hot(candidates, field="candidates")
    twice = sorted({symbol for symbol in candidates if list(candidates).count(symbol) > 1})
    if twice:
        raise FormulaError(f"candidates names {', '.join(twice)} more than once", fix="Name each element once")
    inside = [symbol for symbol in candidates if symbol in hosts]
    if inside:
        raise FormulaError(
            f"candidates: {', '.join(inside)} is part of the host {formula}",
            fix="Name only elements that are not in the host",
        )
    return mask


def _role(role: str, spectrum: Spectrum) -> str:
    return role if spectrum.source in ("", role) else f"{role} {spectrum.source}"


def _checked_edge(host: Spectrum, edge_mev: float) -> float:
    """Refuse an edge that the host's spectrum contradicts."""
    end = float(host.energy_mev[-1])
    if not (isinstance(edge_mev, int | float | np.number) and np.isfinite(edge_mev) and edge_mev > 0.0):
        raise SpectrumError(f"the band edge is given as {edge_mev!r} meV", fix="Give a positive number of meV")
    if not 0.05 * end <= edge_mev <= 2.0 * end:
        raise SpectrumError(
            f"{_role('host', host)}: the band edge is given as {edge_mev:.4g} meV",
            why=f"the spectrum ends at {end:.4g} meV",
            fix="Give the edge in meV, whatever the unit of the spectrum; check that unit",
        )
    return float(edge_mev)


def _check_pair(host: Spectrum, doped: Spectrum, elements: tuple[str, ...], formula: str) -> None:
    names = f"{_role('host', host)} and {_role('doped', doped)}"
    if host.kind != doped.kind:
        raise SpectrumError(
            f"{names} are different kinds of DOS",
            why=f"{host.kind} and {doped.kind}",
            fix="Give two spectra of one kind, or declare the kind where a file does not",
        )
    if host.element != doped.element and host.element and doped.element:
        raise SpectrumError(
            f"{names} are projected on different elements",
            why=f"{host.element} and {doped.element}",
            fix="Give both spectra projected on the same element",
        )
    element = host.element or doped.element
    if element is not None and element not in elements:
        raise SpectrumError(
            f"{names} are projected on {element}, which is not in the host {formula}",
            fix="Check the formula, or give spectra projected on an element of the host",
        )


def _check_reach(host: Spectrum, doped: Spectrum, edge_mev: float) -> None:
    start, end = float(doped.energy_mev[0]), float(doped.energy_mev[-1])
    name = _role("doped", doped)
    last = doped.dos[-3:] - (0.0 if doped.error is None else doped.error[-3:])
    tail = min(float(last[-1]), float(last.mean())) / float(doped.dos.max())
    if end < 0.95 * edge_mev or tail >= EDGE_THRESHOLD:  # a grid may end right at the edge, which smoothing shifts
        raise SpectrumError(
            f"{name}: the grid ends below the band edge",
            why=f"it ends at {end:.4g} meV with {tail:.0%} of the maximum, the host's edge is at {edge_mev:.4g} meV",
            fix="Give the doped spectrum until it has fallen to zero; light dopants vibrate above the host's edge",
        )
    for role, begin in ((_role("host", host), float(host.energy_mev[0])), (name, start)):
        if begin > 0.5 * edge_mev:
            raise SpectrumError(
                f"{role}: the grid starts at {begin:.4g} meV, above half of the host's edge",
                why=f"the edge is at {edge_mev:.4g} meV",
                fix="Give the DOS from low energies on; check the units of both spectra",
            )


def _check_plausible(host: Spectrum, doped: Spectrum, edge_mev: float) -> None:
    """Refuse what no phonons can be, and two spectra that nobody would take for one crystal's."""
    if edge_mev > plausible.HIGHEST:
        raise SpectrumError(
            f"{_role('host', host)}: the DOS reaches to {edge_mev:.4g} meV, as read in {host.unit}",
            why=f"no phonon lies above {plausible.HIGHEST:g} meV",
            fix="Say the unit (--unit) if it is another; an electronic DOS is not read",
        )
    shared = plausible.overlap(host, doped)
    if shared < plausible.STRANGE:
        units = f"{host.unit} and {doped.unit}" if host.unit != doped.unit else f"{host.unit} both"
        raise SpectrumError(
            f"{_role('host', host)} and {_role('doped', doped)} share only {shared:.0%} of their area",
            why=f"read in {units}",
            fix="Check that both are of one crystal, and the unit of each (--unit, or --host-unit and --doped-unit)",
        )


def stack(batches: Sequence[Batch]) -> Batch:
    """Stack batches into one, in order.

    Raises:
        SpectrumError: There is nothing to stack.
    """
    if not batches:
        raise SpectrumError("there are no pairs", fix="Give one pair of spectra at least")
    return Batch.join(batches)


def symbols(mask: NDArray[np.bool_]) -> tuple[str, ...]:
    """Return the elements that a (E,) mask selects, in the order of the vocabulary."""
    return tuple(symbol for symbol, chosen in zip(VOCABULARY, mask, strict=True) if chosen)
