"""A virtual lab: rows of a simulated data set, measured on an instrument of its own, as a table for fine-tuning.

To train for an instrument, or a kind of spectrum, of which there are few measured samples or none yet; and to learn
what so many samples would be worth.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from defectnet.config import STORAGE_GRID, Bounded, bounded
from defectnet.data.shards import AS_IS, Row, Sample, projected_pairs, read_shard, shard_files
from defectnet.elements import element_index
from defectnet.errors import ConfigError, LabError, ShardError
from defectnet.files import is_file_name, replacing
from defectnet.lab.table import TABLE
from defectnet.measure.forward import MeasuredPairs, measure_pairs
from defectnet.measure.settings import Measurement
from defectnet.rng import row_rng
from defectnet.spectrum import KINDS, Spectrum

POINTS: Final = 200  # of a spectrum that ends at `REACH`
REACH: Final = 2.4  # its end, in units of the host's edge; further where modes lie beyond
_IDS: Final = "Give shards that `defectnet simulate` wrote"
_BEYOND: Final = 1e-4  # of the area: so little may be cut off


@dataclass(frozen=True)
class Instrument(Bounded, called="instrument"):
    """What a lab measures with; the same for all its samples.

    Attributes:
        kind: Kind of DOS: total, neutron-weighted or projected.
        element: Host element that a projected DOS shows.
        fwhm_mev: Gaussian resolution at zero energy, full width at half maximum.
        fwhm_growth: Resolution at the host's band edge over that at zero energy.
        noise: Counting noise, as `defectnet.measure.settings.Measurement.noise`.
        background: Area of a smooth background, relative to that of the DOS.
        cut_low_mev: Energy below which nothing is measured; the DOS is continued as energy squared.
        energy_factor: Energy that the instrument reads over the true one.
    """

    kind: str = bounded("neutron-weighted", choices=KINDS)
    element: str | None = None
    fwhm_mev: float = 1.5
    fwhm_growth: float = 1.6
    noise: float = 0.01
    background: float = 0.0
    cut_low_mev: float = 0.0
    energy_factor: float = bounded(1.0, 0.5, 2.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.element is not None) != (self.kind == "projected"):
            raise ConfigError(
                f"instrument.kind is {self.kind} and element {self.element}",
                fix="Name the element of a projected DOS, and of no other",
            )
        if self.element is not None:
            element_index(self.element)
        self.measurement()  # which checks the rest

    def measurement(self) -> Measurement:
        """Return the forward model without the error of the energy axis."""
        # What is projected has one row of DOS left, which is then all there is.
        kind = "total" if self.kind == "projected" else self.kind
        return Measurement(
            weights=tuple(float(kind == name) for name in KINDS),  # type: ignore[arg-type]  # as many as kinds
            fwhm_mev=(self.fwhm_mev, self.fwhm_mev),
            fwhm_growth=(self.fwhm_growth, self.fwhm_growth),
            noise=(self.noise, self.noise),
            background=(self.background, self.background),
            cut_low_mev=(self.cut_low_mev, self.cut_low_mev),
        )

    @property
    def resolution_mev(self) -> float:
        """Resolution in the middle of the band, as a lab would state it."""
        return self.fwhm_mev * (1.0 + self.fwhm_growth) / 2.0

    def measure(self, sample: Sample) -> MeasuredPairs:
        """Measure a simulated pair, to a batch of one; its noise depends on its id alone.

        Raises:
            LabError: The DOS is to be projected on an element that the host or the sample does not hold.
        """
        seen = sample if self.element is None else projected(sample, self.element)
        pairs, rngs = projected_pairs([Row.of(seen)]), [row_rng("lab", sample.row_id)]
        return measure_pairs(pairs, self.measurement(), rngs, grid=STORAGE_GRID)


def projected(sample: Sample, element: str) -> Sample:
    """Return a row with the DOS of one element alone.

    Raises:
        LabError: The host or the sample does not hold the element.
    """
    if element not in sample.host_elements or element not in sample.doped_elements:
        raise LabError(f"row {sample.row_id} holds no {element} to project on", fix="Measure rows of other hosts")
    host, doped = sample.host_elements.index(element), sample.doped_elements.index(element)
    return replace(
        sample,
        host_elements=(element,),
        host_dos=sample.host_dos[host : host + 1],
        doped_elements=(element,),
        doped_counts=sample.doped_counts[doped : doped + 1],
        doped_dos=sample.doped_dos[doped : doped + 1],
    )


def as_is(folder: Path) -> list[Sample]:
    """Read the rows of a data set with the potential's own stiffness.

    Raises:
        ShardError: There are none, or a shard is damaged.
    """
    rows = [row for path in shard_files(folder) for row in read_shard(path) if row.variant == AS_IS]
    if not rows:
        raise ShardError(f"folder {folder} holds no rows", fix="Give a folder of `defectnet simulate`")
    return rows


def write_lab(folder: Path, samples: Iterable[Sample], instrument: Instrument) -> int:
    """Measure rows and write the table of pairs with the spectra that it names.

    A host's spectrum is written once, and is that of its first row. The same call again writes the same; a file of
    the same name with another content is left alone.

    Args:
        folder: Where to; made if needed.
        samples: Rows.
        instrument: What they are measured on.

    Returns:
        Number of pairs.

    Raises:
        LabError: As `Instrument.measure`; an id is no name of a file, two rows have one, or the folder holds another
            file of that name.
        SpectrumError: What is measured of a row is no DOS, by too much noise or by modes at zero energy.
    """
    table = [("sample", "host_file", "doped_file", "formula", "dopants", "resolution_mev")]
    files: dict[str, str] = {}
    hosts: set[str] = set()
    for sample in samples:
        name, host_file = sample.row_id.replace("/", "-"), f"{sample.host_id}.csv"
        named = is_file_name(host_file) and is_file_name(name) and f"{name}.csv" not in {*files, host_file}
        if not named or (host_file in files and host_file not in hosts):
            raise LabError(f"row {sample.row_id!r:.60} of {sample.host_id!r:.60} names no file of its own", fix=_IDS)
        measured = instrument.measure(sample)
        edge = float(measured.edge_mev[0])
        if host_file not in hosts:
            hosts.add(host_file)
            files[host_file] = _text(measured.host[0], edge, instrument, f"host of {sample.row_id}")
        files[f"{name}.csv"] = _text(measured.doped[0], edge, instrument, sample.row_id)
        dopants = ";".join(f"{symbol}:{share:.5g}" for symbol, share in sample.concentrations.items())
        resolution = f"{round(instrument.resolution_mev, 1):g}"
        table.append((name, host_file, f"{name}.csv", sample.formula, dopants, resolution))
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows(table)
    files[TABLE] = written.getvalue()  # last: a table names what is there
    for name, text in files.items():
        path = folder / name
        if path.is_symlink() or (path.exists() and path.read_bytes() != text.encode()):
            raise LabError(f"{path} is there already, and another file", fix="Give a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")
    return len(table) - 1


def _text(dos: np.ndarray, edge_mev: float, instrument: Instrument, row: str) -> str:
    """Return one spectrum on a plain grid in meV, as the instrument reads it, as text of a file."""
    edge = edge_mev * instrument.energy_factor
    energy = STORAGE_GRID.centres * edge
    step = round(REACH * edge / POINTS, 2)
    last = int(np.searchsorted(dos.cumsum(), (1.0 - _BEYOND) * dos.sum()))
    plain = np.arange(max(POINTS, int(energy[last] / step) + 3)) * step
    spectrum = Spectrum(energy, dos, "meV", kind=instrument.kind, element=instrument.element, source=row)
    spectrum = spectrum.resampled(plain).normalised()
    head = [f"# kind: {instrument.kind}", *([f"# element: {instrument.element}"] if instrument.element else [])]
    lines = [f"{e:.2f},{1000 * d:.2f}" for e, d in zip(spectrum.energy, spectrum.dos, strict=True)]
    return "\n".join([*head, "energy_meV,dos", *lines]) + "\n"
