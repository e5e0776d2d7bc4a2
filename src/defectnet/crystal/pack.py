"""Host packs: a host's force constants and its substitutions in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray

from defectnet.crystal.host import EXACT, STRAIN, HostModel
from defectnet.crystal.pairs import expanded, fixing, reduced
from defectnet.crystal.substitution import Substitution, with_sum_rule
from defectnet.elements import INDEX, NUMBERS
from defectnet.errors import SimulationError
from defectnet.hub.catalogue import bundled_root
from defectnet.potentials.folder import CONFIG, HOST, WEIGHTS, read_config, read_weights, write_folder
from defectnet.potentials.force_constants import ForceConstants, aligned
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.supercells import Supercell
from defectnet.potentials.symmetry import Operations, find_operations

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_KEYS: Final = {
    "id": str,
    "formula": str,
    "potential": str,
    "potential_sha256": str,
    "energy_ev": float,
    "substitutions": list,
    "failures": list,
}
_FIELDS: Final = {
    "dopant": str,
    "site": int,
    "replaces": str,
    "volume_angstrom3": float,
    "far_volume_angstrom3": float,
    "energy_ev": float,
    "displacement_angstrom": float,
    "orientations": int,
}
_FAILURE_FIELDS: Final = {"dopant": str, "site": int, "reason": str}
_AGAIN: Final = "Make the pack again with `defectnet host make`, or copy or download it again"

LARGEST_SUPERCELL: Final = 1000
"""Most cells in the supercell of a pack."""

HOST_KEEP: Final = 0.0002
"""Smallest norm of a block of the host's force constants, eV/angstrom^2, that a pack keeps; and of their derivatives
times the step of ln V that they come from."""


NOISE: Final = 1e-9
"""Elements of blocks, eV/angstrom^2, that are zero but for rounding."""


@dataclass(frozen=True)
class Failure:
    """A substitution that could not be made, and why."""

    dopant: str
    site: int
    reason: str


@dataclass(frozen=True)
class HostPack:
    """A host as a potential sees it, and single substitutions in it.

    Attributes:
        host: The pristine crystal.
        substitutions: By (dopant, inequivalent site of the primitive cell).
        failures: What could not be made.
        made_with: Settings of the making, plain values; a pack is gone on with by the same alone.
    """

    host: HostModel
    substitutions: dict[tuple[str, int], Substitution]
    failures: tuple[Failure, ...] = field(default=())
    made_with: dict[str, Any] = field(default_factory=dict)

    @property
    def dopants(self) -> tuple[str, ...]:
        """What can be substituted, such as ``Al@Ga``, in the order of the elements."""
        pairs = {(dopant, self.replaced(site)) for dopant, site in self.substitutions}
        return tuple(f"{x}@{y}" for x, y in sorted(pairs, key=lambda pair: (INDEX[pair[0]], INDEX[pair[1]])))

    def replaced(self, site: int) -> str:
        """Return the symbol of an atom of the primitive cell."""
        return _symbols(self.host.primitive)[site]

    # -- files -------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write the pack, whole or not at all; a pack that is there is replaced.

        Raises:
            SimulationError: The folder holds anything else, or a number is NaN or infinite.
        """
        tensors, table = _packed(self)
        config = {
            "architecture": HOST,
            "licence": "CC BY 4.0",
            "form": {"supercell": self.host.cell.matrix.tolist()},
            "id": self.host.id,
            "formula": self.host.formula,
            "potential": self.host.potential,
            "potential_sha256": self.host.potential_sha256,
            "energy_ev": self.host.energy,
            "band_edge_mev": round(self.host.band_edge_mev, 4),
            "substitutions": table,
            "failures": [
                {"dopant": f.dopant, "site": f.site, "reason": f.reason}
                for f in sorted(self.failures, key=lambda f: (f.site, INDEX[f.dopant]))
            ],
            "made_with": self.made_with,
        }
        write_folder(folder, tensors, config, card=_card(self))

    @classmethod
    def load(cls, source: str | Path) -> HostPack:
        """Load a pack by the name of a bundled one, or from a folder.

        Raises:
            SimulationError: There is none; or it is damaged, unknown, or not of this schema.
        """
        return _unpacked(find_pack(source))


def bundled_packs() -> dict[str, Path]:
    """Return name -> folder of the packs that come with the package, sorted by name."""
    root = bundled_root()
    found = [] if root is None else sorted(path.parent for path in (root / "hosts").glob(f"*/{CONFIG}"))
    return {folder.name: folder for folder in found if not folder.name.startswith(".")}


def find_pack(source: str | Path) -> Path:
    """Return the folder of a pack, by the name of a bundled one in any case, or by its path.

    Raises:
        SimulationError: There is none.
    """
    if not isinstance(source, (str, Path)):
        raise SimulationError(f"a host pack is a folder, not a {type(source).__name__}", fix="Give a name or a path")
    known = {name.lower(): folder for name, folder in bundled_packs().items()}
    folder = known.get(str(source).lower(), Path(source))
    if not folder.is_dir():
        raise SimulationError(
            f"no host pack is called {str(source)!r}, and there is no such folder",
            fix="`defectnet host list` shows the bundled ones; `defectnet host make` makes others",
        )
    return folder


def _symbols(crystal: Crystal) -> list[str]:
    return list(Atoms(crystal.numbers).symbols)


def _packed(pack: HostPack) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    host = pack.host
    pairs, blocks = _host_pairs((host.force_constants, *host.by_volume))
    kept, means = reduced(pairs, blocks, host.operations, None)
    tensors = {
        "numbers": torch.from_numpy(host.primitive.numbers.astype(np.uint8)),
        "cell": torch.from_numpy(host.primitive.cell),
        "frac": torch.from_numpy(np.round(host.primitive.frac, 12) + 0.0),  # the same bytes every time
        "host_pairs": torch.from_numpy(pairs[kept].astype(np.int8)),
        "host_blocks": torch.from_numpy(_without_noise(means)).to(torch.float32),
    }
    table: list[dict[str, Any]] = []
    columns: dict[str, list[Any]] = {name: [] for name in ("pairs", "blocks", "rotations", "sizes")}
    for (dopant, site), one in sorted(pack.substitutions.items(), key=lambda item: (item[0][1], INDEX[item[0][0]])):
        group = fixing(host.operations, site, one.rotations)
        pairs, blocks = _local_pairs(one)
        kept, means = reduced(pairs, blocks, group, site)
        columns["pairs"].append(pairs[kept].astype(np.int8))
        columns["blocks"].append(_without_noise(means).astype(np.float16))
        columns["rotations"].append(one.rotations.astype(np.int8))
        columns["sizes"].append([len(kept), len(one.rotations)])
        table.append(
            {
                "dopant": dopant,
                "site": site,
                "replaces": pack.replaced(site),
                "volume_angstrom3": round(one.volume, 5),
                "far_volume_angstrom3": round(one.far_volume, 5),
                "energy_ev": round(one.energy, 5),
                "displacement_angstrom": round(one.displacement, 4),
                "orientations": one.orientations,
            }
        )
    tensors["pairs"] = torch.from_numpy(np.concatenate([np.zeros((0, 8), np.int8), *columns["pairs"]]))
    tensors["blocks"] = torch.from_numpy(np.concatenate([np.zeros((2, 0, 3, 3), np.float16), *columns["blocks"]], 1))
    tensors["rotations"] = torch.from_numpy(np.concatenate([np.zeros((0, 3, 3), np.int8), *columns["rotations"]]))
    tensors["sizes"] = torch.tensor(columns["sizes"], dtype=torch.int32).reshape(-1, 2)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}, table


def _without_noise(blocks: FloatArray) -> FloatArray:
    """Return blocks with zeros where rounding has left something, of either sign: the same bytes every time."""
    return np.where(np.abs(blocks) < NOISE, 0.0, blocks)


def _host_pairs(parts: Sequence[ForceConstants]) -> tuple[IntArray, FloatArray]:
    """Return (B, 8) pairs and (3, B, 3, 3) blocks of a host, without the diagonal and without what is tiny."""
    keys, found = aligned(parts)
    first, second, shift = keys[:, 0].numpy(), keys[:, 1].numpy(), keys[:, 2:].numpy()
    blocks = found.numpy()
    sizes = np.linalg.norm(blocks, axis=(2, 3)) * np.array([1.0, STRAIN, 0.5 * STRAIN**2])[:, None]
    kept = ((first != second) | (shift != 0).any(1)) & (sizes.max(0) > HOST_KEEP)
    zeros = np.zeros((len(first), 3), dtype=np.int64)
    pairs = np.column_stack([first, zeros, second, shift])
    return pairs[kept], blocks[:, kept]


def _local_pairs(one: Substitution) -> tuple[IntArray, FloatArray]:
    """Return (B, 8) pairs and (2, B, 3, 3) blocks of a substitution, without the diagonal."""
    m = len(one.basis)
    stacked = np.stack([one.change, one.by_volume]).reshape(2, m, 3, m, 3).transpose(0, 1, 3, 2, 4)
    first, second = np.nonzero((stacked != 0.0).any((0, 3, 4)) & ~np.eye(m, dtype=bool))
    atoms = np.column_stack([one.basis, one.lattice])
    return np.concatenate([atoms[first], atoms[second]], axis=1), stacked[:, first, second]


def _unpacked(folder: Path) -> HostPack:
    config = read_config(folder, HOST, _KEYS)
    _check_config(config, folder)
    tensors = _checked(read_weights(folder, config)[0], folder, config)
    try:
        return _built(config, tensors, _supercell(config["form"], folder))
    except SimulationError as error:
        raise SimulationError(f"{folder}: {error.what}", why=error.why, fix=_AGAIN) from error


def _built(config: dict[str, Any], tensors: dict[str, torch.Tensor], supercell: IntArray) -> HostPack:
    numbers = tensors["numbers"].numpy().astype(np.int64)
    cell = tensors["cell"].numpy()
    primitive = Crystal(numbers, cell, tensors["frac"].numpy() @ cell)
    operations = find_operations(primitive, EXACT)
    found = expanded(
        tensors["host_pairs"].numpy().astype(np.int64), tensors["host_blocks"].double().numpy(), operations, None
    )
    parts = [_host_part(len(primitive), found[0], block) for block in found[1]]
    host = HostModel(
        config["id"],
        config["formula"],
        config["potential"],
        config["potential_sha256"],
        Supercell.of(primitive, supercell),
        parts[0],
        (parts[1], parts[2]),
        config["energy_ev"],
    )
    return HostPack(
        host,
        _substitutions(host, config["substitutions"], tensors),
        tuple(Failure(f["dopant"], f["site"], f["reason"]) for f in config["failures"]),
        config.get("made_with", {}),
    )


def _supercell(form: dict[str, Any], folder: Path) -> IntArray:
    """Return the (3, 3) supercell of a config."""
    found = form.get("supercell")
    rows = found if isinstance(found, list) and len(found) == 3 else [[]]
    if not all(isinstance(row, list) and len(row) == 3 and all(type(v) is int for v in row) for row in rows):
        raise SimulationError(f"{folder / CONFIG}: form.supercell is no matrix of 3 x 3 integers", fix=_AGAIN)
    if max(abs(v) for row in rows for v in row) > LARGEST_SUPERCELL:
        raise SimulationError(f"{folder / CONFIG}: form.supercell has no believable size", fix=_AGAIN)
    matrix = np.array(rows, dtype=np.int64)
    if not 1 <= round(float(np.linalg.det(matrix))) <= LARGEST_SUPERCELL:
        raise SimulationError(f"{folder / CONFIG}: form.supercell has no believable size", fix=_AGAIN)
    return matrix


def _host_part(atoms: int, pairs: IntArray, blocks: FloatArray) -> ForceConstants:
    whole = ForceConstants(
        atoms,
        torch.from_numpy(pairs[:, 0]),
        torch.from_numpy(pairs[:, 4]),
        torch.from_numpy(pairs[:, 5:] - pairs[:, 1:4]),
        torch.from_numpy(blocks),
    )
    return whole.with_acoustic_sum_rule()


def _substitutions(
    host: HostModel, table: list[dict[str, Any]], tensors: dict[str, torch.Tensor]
) -> dict[tuple[str, int], Substitution]:
    out = {}
    at = turn = 0
    pairs, blocks = tensors["pairs"].numpy().astype(np.int64), tensors["blocks"].double().numpy()
    rotations = tensors["rotations"].numpy().astype(np.int64)
    for row, (size, count) in zip(table, tensors["sizes"].tolist(), strict=True):
        own = rotations[turn : turn + count]
        group = fixing(host.operations, row["site"], own)
        _check_site(host, row, group)
        found, values = expanded(pairs[at : at + size], blocks[:, at : at + size], group, row["site"])
        at, turn = at + size, turn + count
        keys, place = np.unique(np.concatenate([found[:, :4], found[:, 4:]]), axis=0, return_inverse=True)
        m = len(keys)
        a, b = np.split(place.ravel(), 2)
        whole = np.zeros((2, m, m, 3, 3))
        whole[:, a, b] = values
        change, by_volume = (with_sum_rule(part) for part in whole)
        out[row["dopant"], row["site"]] = Substitution(
            dopant=row["dopant"],
            site=row["site"],
            basis=keys[:, 0],
            lattice=keys[:, 1:],
            change=change,
            by_volume=by_volume,
            volume=row["volume_angstrom3"],
            far_volume=row["far_volume_angstrom3"],
            energy=row["energy_ev"],
            displacement=row["displacement_angstrom"],
            rotations=own,
            orientations=row["orientations"],
        )
    return out


def _check_site(host: HostModel, row: dict[str, Any], group: Operations) -> None:
    """See that a substitution fits the host that the numbers make."""
    site, name = row["site"], f"{row['dopant']} on site {row['site']}"
    if site not in host.sites:
        raise SimulationError(f"{name}: the sites are {', '.join(map(str, host.sites))}", fix=_AGAIN)
    if row["replaces"] != _symbols(host.primitive)[site]:
        raise SimulationError(f"{name}: there is no {row['replaces']} on it", fix=_AGAIN)
    if row["orientations"] < 1 or len(host.operations.fixing(site)) % (row["orientations"] * len(group)):
        raise SimulationError(f"{name} has no {row['orientations']} orientations", fix=_AGAIN)


def _check_config(config: dict[str, Any], folder: Path) -> None:
    """See that the tables of a config are whole and its numbers finite.

    Raises:
        SimulationError: They are not.
    """
    path = folder / CONFIG
    if not np.isfinite(config["energy_ev"]):
        raise SimulationError(f"{path}: energy_ev is {config['energy_ev']}", fix=_AGAIN)
    if not isinstance(config.get("made_with", {}), dict):
        raise SimulationError(f"{path}: made_with is no object", fix=_AGAIN)
    named: set[tuple[str, int]] = set()
    for table, fields in (("substitutions", _FIELDS), ("failures", _FAILURE_FIELDS)):
        for number, row in enumerate(config[table]):
            where = f"{path}: {table}[{number}]"
            for key, kind in fields.items():
                if not isinstance(row, dict) or type(row.get(key)) is not kind:
                    raise SimulationError(f"{where}: {key} is missing or no {kind.__name__}", fix=_AGAIN)
                if kind is float and not np.isfinite(row[key]):
                    raise SimulationError(f"{where}: {key} is {row[key]}", fix=_AGAIN)
            if row["dopant"] not in INDEX:
                raise SimulationError(f"{where} names an unknown element", fix=_AGAIN)
            if (row["dopant"], row["site"]) in named:
                raise SimulationError(f"{where}: {row['dopant']} on site {row['site']} comes twice", fix=_AGAIN)
            named.add((row["dopant"], row["site"]))


def _checked(tensors: dict[str, torch.Tensor], folder: Path, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """See that a pack holds what its config says.

    Raises:
        SimulationError: It does not.
    """

    def wrong(why: str) -> SimulationError:
        return SimulationError(f"{folder / WEIGHTS} does not hold what {CONFIG} says", why=why, fix=_AGAIN)

    shapes: dict[str, tuple[torch.dtype, tuple[int | None, ...]]] = {
        "numbers": (torch.uint8, (None,)),
        "cell": (torch.float64, (3, 3)),
        "frac": (torch.float64, (None, 3)),
        "host_pairs": (torch.int8, (None, 8)),
        "host_blocks": (torch.float32, (3, None, 3, 3)),
        "pairs": (torch.int8, (None, 8)),
        "blocks": (torch.float16, (2, None, 3, 3)),
        "rotations": (torch.int8, (None, 3, 3)),
        "sizes": (torch.int32, (None, 2)),
    }
    if set(tensors) != set(shapes):
        raise wrong(f"tensors are {', '.join(sorted(tensors))}")
    for name, (dtype, shape) in shapes.items():
        found = tensors[name]
        fits = found.ndim == len(shape) and all(w in (None, s) for w, s in zip(shape, found.shape, strict=True))
        if found.dtype != dtype or not fits:
            raise wrong(f"{name} is {found.dtype} of shape {tuple(found.shape)}")
    atoms = len(tensors["numbers"])
    sizes, rows = tensors["sizes"], config["substitutions"]
    if not atoms or not bool(np.isin(tensors["numbers"].numpy(), NUMBERS).all()):
        raise wrong("numbers are not those of known elements")
    if abs(float(torch.linalg.det(tensors["cell"]))) < 1.0:
        raise wrong("the cell has no volume")
    for name in ("host_pairs", "pairs"):
        ends = tensors[name][:, [0, 4]]
        if bool(((ends < 0) | (ends >= atoms)).any()):
            raise wrong(f"{name} names atoms that are not there")
    if len(tensors["frac"]) != atoms or len(sizes) != len(rows) or bool((sizes < torch.tensor([0, 1])).any()):
        raise wrong("numbers of atoms or substitutions differ")
    if sizes.sum(0).tolist() != [len(tensors["pairs"]), len(tensors["rotations"])]:
        raise wrong("lengths of the substitutions do not add up")
    if tensors["blocks"].shape[1] != len(tensors["pairs"]) or tensors["host_blocks"].shape[1] != len(
        tensors["host_pairs"]
    ):
        raise wrong("pairs and blocks differ in number")
    for number, row in enumerate([*rows, *config["failures"]]):
        if not 0 <= row["site"] < atoms:
            table = "substitutions" if number < len(rows) else "failures"
            raise SimulationError(f"{folder / CONFIG}: {table}: site {row['site']} is not in the host", fix=_AGAIN)
    return tensors


def _card(pack: HostPack) -> str:
    """Return the text of the pack's README."""
    host = pack.host
    left = [f"{one.dopant}@{pack.replaced(one.site)}" for one in pack.substitutions.values() if one.off_centre]
    lines = [
        f"# {host.id}",
        "",
        f"Force constants of {host.formula} and of {len(pack.substitutions)} single substitutions in it, computed with "
        f"`{host.potential}` in a supercell of {len(host.cell)} atoms, for `defectnet.HostPack`. Charged and magnetic "
        "states are outside: each dopant is as the potential knows it.",
        "",
        f"- Band edge: {host.band_edge_mev:.1f} meV",
        f"- Dopants: {', '.join(pack.dopants) or 'none'}",
        f"- Off their sites: {', '.join(left) or 'none'}",
        f"- Failed: {', '.join(f'{f.dopant}@{pack.replaced(f.site)} ({f.reason})' for f in pack.failures) or 'none'}",
        "",
        "Licence of these numbers: CC BY 4.0.",
        "",
    ]
    return "\n".join(lines)
