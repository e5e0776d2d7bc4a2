"""HDF5 of measured DOS: what getDOS (multiphonon) and Mantid's SaveNexusProcessed write, and NXdata groups.

Needs h5py (`pip install 'defectnet[hdf5]'`). multiphonon keeps squares of errors, as its histograms do.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from defectnet.errors import SpectrumError
from defectnet.io.raw import FloatArray, Raw
from defectnet.io.words import quantity
from defectnet.spectrum import parse_unit

MAGIC = b"\x89HDF\r\n\x1a\n"
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
    try:
        import h5py  # here, because it is an extra
    except ModuleNotFoundError as error:
        raise SpectrumError(
            f"file {source} is HDF5, which needs h5py", fix="Install it: pip install 'defectnet[hdf5]'; or save a CSV"
        ) from error
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            found = [raw for name in _groups(file, h5py) if (raw := _curve(file[name], source, element)) is not None]
    except (OSError, KeyError, RuntimeError) as error:
        raise SpectrumError(f"file {source} is damaged HDF5", why=str(error), fix="Write it again") from error
    if len(found) != 1:
        raise SpectrumError(
            f"file {source} holds {len(found) or 'no'} curves that are known to be a DOS",
            fix="Give getDOS's final-dos.h5, Mantid's SaveNexusProcessed of one spectrum, an NXdata group, or a CSV",
        )
    return found[0]


def _groups(file: Any, h5py: Any) -> list[str]:
    names = ["/"]
    file.visititems(lambda name, node: names.append(name) if isinstance(node, h5py.Group) else None)
    return names


def _curve(group: Any, source: str, element: str | None) -> Raw | None:
    """Return the curve that a group is, in one of three layouts."""
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
