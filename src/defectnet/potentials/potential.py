"""Potentials behind one protocol, and where their files come from."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from defectnet.errors import SimulationError
from defectnet.files import file_sha256
from defectnet.potentials.force_constants import ForceConstants
from defectnet.potentials.hessian import force_constants
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.nep import NEP, EnergyForcesStress


class Potential(Protocol):
    """What the simulator asks of a potential.

    Attributes:
        name, sha256: Of its file.
        exact: Whether second derivatives of a small cell hold at any wave vector; otherwise host and doped cell are
            both computed in the supercell.
    """

    name: str
    sha256: str
    exact: bool

    def check(self, crystal: Crystal) -> None:
        """Raise `SimulationError` if the potential does not know all elements of a crystal."""
        ...

    def evaluate(self, crystal: Crystal) -> EnergyForcesStress:
        """Compute energy, forces and stress."""
        ...

    def force_constants(self, crystal: Crystal) -> ForceConstants:
        """Compute the second derivatives."""
        ...


class ManyPotential(Potential, Protocol):
    """A potential that evaluates several crystals in one go."""

    def evaluate_many(self, crystals: Sequence[Crystal]) -> list[EnergyForcesStress]:
        """Compute energy, forces and stress of each."""
        ...


class FastPotential:
    """A NEP with its exact analytic Hessian.

    Args:
        model: The potential.
        precision: Bits of the products that make up a Hessian, 64 or 32. Half of them take half the time or less, and
            change energies of modes by about 1e-4 meV; forces are always in 64.
    """

    exact = True

    def __init__(self, model: NEP, *, precision: int = 64) -> None:
        if precision not in (32, 64):
            raise SimulationError(f"precision is {precision} bits", fix="Use 64 or 32")
        self.model = model
        self.precision = precision
        self.name = model.parameters.name
        self.sha256 = model.parameters.sha256

    def check(self, crystal: Crystal) -> None:
        """See that the potential knows all elements.

        Raises:
            SimulationError: It does not.
        """
        self.model.types(crystal)

    def evaluate(self, crystal: Crystal) -> EnergyForcesStress:
        """Compute energy, forces and stress."""
        return self.model.evaluate(crystal)

    def evaluate_many(self, crystals: Sequence[Crystal]) -> list[EnergyForcesStress]:
        """Compute energy, forces and stress of several crystals in one go."""
        return self.model.evaluate_many(crystals)

    def force_constants(self, crystal: Crystal) -> ForceConstants:
        """Compute the force constants, exact at any wave vector."""
        return force_constants(self.model, crystal, torch.float64 if self.precision == 64 else torch.float32)


@dataclass(frozen=True)
class PublishedPotential:
    """A potential that is fetched once and then kept in the cache.

    Attributes:
        package: PyPI package whose source archive carries the file; version: which one.
        member: End of the file's path inside the archive.
        sha256: Of the file, in hex.
        licence: Of the file; named when it is fetched.
        source: Paper.
    """

    package: str
    version: str
    member: str
    sha256: str
    licence: str
    source: str


PUBLISHED: dict[str, PublishedPotential] = {
    "nep89": PublishedPotential(
        package="NepTrainKit",
        version="3.1.5",
        member="nep89.txt",
        sha256="75168ece02e840e4a32644f982b78d43cba697f5b64b4c8134ab66c7a8c28be1",
        licence="GPL-3.0",
        source="Liang et al., arXiv 2504.21286",
    )
}


def cache_folder() -> Path:
    """Return the folder for fetched potentials: ``$DEFECTNET_CACHE`` or ``~/.cache/defectnet``."""
    root = os.environ.get("DEFECTNET_CACHE")
    return Path(root) if root else Path.home() / ".cache" / "defectnet"


def load_potential(source: str | Path, device: torch.device | str = "cpu", *, precision: int = 64) -> ManyPotential:
    """Load a potential from a path, or one that has a name.

    Args:
        source: A name, see `potential_names`; or the path of a NEP in GPUMD's text format, of a folder that holds one
            of ours or a Nequix network.
        device: Where to compute.
        precision: See `FastPotential`.

    Raises:
        SimulationError: There is none, or it is damaged.
    """
    from defectnet.potentials.folder import architecture_of, find_folder  # its module needs this one's

    folder = find_folder(source)
    if folder is None or architecture_of(folder) != "nequix":
        return load_nep(source, device, precision=precision)
    from defectnet.potentials.nequix import NequixPotential  # slow to import: phonopy

    return NequixPotential.from_folder(folder, usable_device(device))


def load_nep(source: str | Path, device: torch.device | str = "cpu", *, precision: int = 64) -> FastPotential:
    """Load a NEP from a path, or one that has a name.

    Raises:
        SimulationError: There is none, or it is damaged.
    """
    from defectnet.potentials.folder import find_folder, read_folder  # its module needs this one's

    name, path = str(source).lower(), Path(source)
    folder = find_folder(source)
    device = usable_device(device)
    if name in PUBLISHED:
        model = NEP.from_file(fetch_potential(name), device)
    elif folder is not None:
        model = NEP(read_folder(folder), device)
    elif not path.exists() and path.suffix == "" and len(path.parts) == 1:
        raise SimulationError(
            f"no potential is called {str(source)!r}",
            fix=f"Names are {', '.join(potential_names())}; a file or a folder is given by its path",
        )
    else:
        model = NEP.from_file(path, device)
    return FastPotential(model, precision=precision)


def potential_names() -> list[str]:
    """Return the names that `load_potential` knows: bundled potentials, and `PUBLISHED` ones that are fetched."""
    from defectnet.potentials.folder import bundled_potentials

    return [*bundled_potentials(), *PUBLISHED]


def usable_device(name: torch.device | str) -> torch.device:
    """Return a device that this machine has.

    Raises:
        SimulationError: It has not, or the name is none.
    """
    try:
        place = torch.zeros(1, device=name).device
        torch.zeros(1, device=place).cpu()  # the device meta holds no numbers
        return place
    except (
        RuntimeError,
        AssertionError,
        NotImplementedError,
        ImportError,
    ) as error:  # torch built without CUDA asserts
        raise SimulationError(
            f"device {str(name)!r} cannot be used",
            why=(str(error).splitlines() or ["no message"])[0][:120],
            fix="Use cpu, or cuda where torch finds a GPU",
        ) from error


def fetch_potential(name: str) -> Path:
    """Return the path of a published potential, fetching it from PyPI the first time.

    Raises:
        SimulationError: It cannot be fetched, or is not the file it should be.
    """
    entry = PUBLISHED[name]
    target = cache_folder() / "potentials" / Path(entry.member).name
    if target.is_file() and file_sha256(target) == entry.sha256:
        return target
    print(f"Fetching {name} ({entry.source}; licence {entry.licence}) from {entry.package} on PyPI", file=sys.stderr)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        # Only this package as source: pip asks it for metadata, for which it may need wheels of other packages.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
        command += ["--no-binary", entry.package, f"{entry.package}=={entry.version}"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        archives = sorted(Path(folder).glob("*.tar.gz")) + sorted(Path(folder).glob("*.zip"))
        if not archives:
            last = (result.stderr.strip().splitlines() or ["no message"])[-1]
            raise SimulationError(
                f"potential {name} could not be fetched from PyPI",
                why=last[:200],
                fix="Check the network, or download the file elsewhere and give its path with --potential",
            )
        found = Path(folder) / target.name
        found.write_bytes(_member(archives[0], entry.member))
        if file_sha256(found) != entry.sha256:
            raise SimulationError(
                f"potential {name}: the file in {archives[0].name} is not the published one (sha256 differs)",
                fix="Download the file elsewhere and give its path with --potential",
            )
        found.replace(target)
    return target


def _member(archive: Path, end: str) -> bytes:
    """Return the one file of an archive whose path ends in `end`."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as zipped:
            for name in zipped.namelist():
                if name.endswith("/" + end):
                    return zipped.read(name)
    else:
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile() and member.name.endswith("/" + end):
                    file = tar.extractfile(member)
                    if file is not None:
                        return file.read()
    raise SimulationError(f"{archive.name} holds no {end}", fix="Give the path of a potential file with --potential")
