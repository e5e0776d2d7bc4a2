"""HDF5 and netCDF: getDOS (multiphonon), Mantid's SaveNexusProcessed, NXdata groups, abinit's PHDOS.nc, MDANSE.

Needs h5py (`pip install 'defectnet[formats]'`), and scipy where netCDF is the classic one, which is not HDF5.
multiphonon keeps squares of errors, as its histograms do.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from defectnet.errors import SpectrumError
from defectnet.io.raw import FloatArray, Raw, select_elements
from defectnet.io.words import quantity
from defectnet.spectrum import parse_unit

MAGIC = b"\x89HDF\r\n\x1a\n", b"CDF\x01", b"CDF\x02"
_DELTA_E = {"deltae": "meV", "deltae_inwavenumber": "cm-1", "energy": "meV"}


def read(data: bytes, source: str, element: str | None) -> Raw:
    """Read the one DOS of a file.

    Args:
        data: Contents of the file.
        source: File name, for errors.
        element: Element that the caller says the DOS is projected on.

    Raises:
        SpectrumError: h5py is not installed, the file is damaged, or it holds no curve, or several.
    """
    kind, package, extra = ("HDF5", "h5py", "hdf5") if data.startswith(MAGIC[0]) else ("netCDF", "scipy", "sim")
    try:
        found = _in_hdf5(data, source, element) if kind == "HDF5" else _in_netcdf(data, source, element)
    except ModuleNotFoundError as error:
        raise SpectrumError(
            f"file {source} is {kind}, which needs {package}",
            fix=f"Install it: pip install 'defectnet[{extra}]'; or save a CSV",
        ) from error
    except SpectrumError:
        raise
    except (OSError, KeyError, RuntimeError, TypeError, IndexError, ValueError) as error:
        raise SpectrumError(f"file {source} is damaged {kind}", why=str(error), fix="Write it again") from error
    if len(found) != 1:
        raise SpectrumError(
            f"file {source} holds {len(found) or 'no'} curves that are known to be a DOS",
            fix="Give getDOS's final-dos.h5, Mantid's SaveNexusProcessed of one spectrum, an NXdata group, abinit's "
            "PHDOS.nc, MDANSE's DOS, or a CSV",
        )
    return found[0]


def _in_hdf5(data: bytes, source: str, element: str | None) -> list[Raw]:
    import h5py  # here, because it is an extra

    with h5py.File(io.BytesIO(data), "r") as file:
        return [raw for name in _groups(file, h5py) if (raw := _curve(file[name], source, element)) is not None]


@dataclass
class _Variable:
    """A variable of a classic netCDF file, as h5py would show it."""

    name: str
    values: Any
    attrs: dict[str, Any]

    def __getitem__(self, key: Any) -> Any:
        return self.values[key]


class _Variables(dict[str, _Variable]):
    attrs: Mapping[str, Any] = MappingProxyType({})


def _in_netcdf(data: bytes, source: str, element: str | None) -> list[Raw]:
    from scipy.io import netcdf_file  # here, because it is an extra

    group = _Variables()
    with netcdf_file(io.BytesIO(data), "r", mmap=False) as file:
        for name, one in file.variables.items():
            group[name] = _Variable(name, one.data, dict(vars(one)["_attributes"]))
    raw = _curve(group, source, element)
    return [] if raw is None else [raw]


def _groups(file: Any, h5py: Any) -> list[str]:
    names = ["/"]
    file.visititems(lambda name, node: names.append(name) if isinstance(node, h5py.Group) else None)
    return names


def _curve(group: Any, source: str, element: str | None) -> Raw | None:
    """Return the curve that a group is, in one of five layouts."""
    if "wmesh" in group and "phdos" in group:  # abinit: eV
        return _abinit(group, source, element)
    if "romega" in group and "dos_total" in group:  # MDANSE: angular frequencies
        return _raw(group["romega"], group["romega"].attrs, group["dos_total"], None, element, source)
    if "data" in group and "grid/E" in group:  # multiphonon
        axis = group["grid/E"]
        energy = axis["bin centers"] if "bin centers" in axis else axis["bin boundaries"]
        error = np.sqrt(np.maximum(_line(group["errors"]), 0.0)) if "errors" in group else None
        return _raw(energy, axis.attrs, group["data"], error, element, source)
    if "values" in group and "axis1" in group:  # Mantid
        error = _line(group["errors"]) if "errors" in group else None
        return _raw(group["axis1"], group["axis1"].attrs, group["values"], error, element, source)
    signal, axes = group.attrs.get("signal"), group.attrs.get("axes")
    if signal is None or axes is None:
        return None
    signal, axis_name = _text(signal), _text(np.ravel(axes)[-1])
    error = next((_line(group[name]) for name in (f"{signal}_errors", "errors") if name in group), None)
    return _raw(group[axis_name], group[axis_name].attrs, group[signal], error, element, source)


def _abinit(group: Any, source: str, element: str | None) -> Raw:
    energy, total = _line(group["wmesh"]), _line(group["phdos"])
    if element is None:
        return Raw(energy, total, "eV", "total")
    if "pjdos_type" not in group or "chemical_symbols" not in group:
        raise SpectrumError(f"{source} holds no DOS of types of atoms", fix="Leave element out")
    symbols = [b"".join(np.ravel(row)).decode().strip(" \0") for row in group["chemical_symbols"][()]]
    dos, projected = select_elements(_line(group["pjdos_type"]).reshape(len(symbols), -1), symbols, element, source)
    return Raw(energy, dos, "eV", "projected", projected)


def _raw(axis: Any, attributes: Any, values: Any, error: FloatArray | None, element: str | None, source: str) -> Raw:
    dos, energy = _line(values), _line(axis)
    if dos.ndim != 1 or energy.ndim != 1 or len(energy) - len(dos) not in (0, 1):
        raise SpectrumError(
            f"{source}: {values.name} and its axis have shapes {dos.shape} and {energy.shape}",
            fix="Save one spectrum, with one energy for each value (or one more, for bins)",
        )
    energy = (energy[1:] + energy[:-1]) / 2 if len(energy) == len(dos) + 1 else energy
    text = _text(attributes.get("units", attributes.get("unit", "")))
    unit = _DELTA_E.get(text.lower()) or (parse_unit(text, field=f"{source}, {axis.name}") if text.strip() else None)
    kind, projected = quantity(
        [_text(values.attrs.get(key, "")) for key in ("units", "long_name", "title")], [], source
    )
    return Raw(energy, dos, unit, kind, projected or element, error)


def _line(dataset: Any) -> FloatArray:
    return np.asarray(np.squeeze(dataset[()]), dtype=np.float64)


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
