"""Host packs: a host's force constants and its substitutions in a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from defectnet.crystal.host import EXACT, STRAIN, HostModel
from defectnet.crystal.pairs import as_pairs, expanded, fixing, from_pairs, reduced
from defectnet.crystal.substitution import Substitution, with_sum_rule
from defectnet.elements import INDEX, NUMBERS, SYMBOLS
from defectnet.errors import SimulationError
from defectnet.files import home_expanded
from defectnet.hub.catalogue import bundled_root
from defectnet.hub.remote import REPO, Remote, damaged, download
from defectnet.potentials.folder import CARD, CONFIG, HOST, WEIGHTS, read_config, read_weights, write_folder
from defectnet.potentials.force_constants import ForceConstants
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.supercells import Supercell
from defectnet.potentials.symmetry import Operations, find_operations

if TYPE_CHECKING:
    from defectnet.crystal.spectra import DopedSpectrum

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

FILES: Final = (CONFIG, WEIGHTS, CARD)
"""What a pack's folder holds, and all that is ever downloaded."""

LARGEST_SUPERCELL: Final = 1000
"""Most cells in the supercell of a pack."""

FAR_KEEP: Final = 0.002
"""Smallest block of what a substitution changes far away, eV/angstrom^2 of all cells together, that a pack keeps."""

HOST_KEEP: Final = 0.0002
"""Smallest norm of a block of the host's force constants, eV/angstrom^2, that a pack keeps; and of their derivatives
times the step of ln V that they come from."""


NOISE: Final = 1e-9
"""Elements of blocks, eV/angstrom^2, that are zero but for rounding."""


@dataclass(frozen=True)
class FailedSubstitution:
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
        source: Folder that it was loaded from; None for one that was not.
    """

    host: HostModel
    substitutions: dict[tuple[str, int], Substitution]
    failures: tuple[FailedSubstitution, ...] = field(default=())
    made_with: dict[str, Any] = field(default_factory=dict)
    source: Path | None = field(default=None, compare=False)

    @property
    def dopants(self) -> tuple[str, ...]:
        """What can be substituted, such as ``Al@Ga``, in the order of the elements."""
        pairs = {(dopant, self.replaced(site)) for dopant, site in self.substitutions}
        return tuple(f"{x}@{y}" for x, y in sorted(pairs, key=lambda pair: (INDEX[pair[0]], INDEX[pair[1]])))

    @property
    def amounts(self) -> Counter[str]:
        """Atoms of each element in the primitive cell."""
        return Counter(self.replaced(atom) for atom in range(len(self.host.primitive)))

    def replaced(self, site: int) -> str:
        """Return the symbol of an atom of the primitive cell."""
        return SYMBOLS[int(self.host.primitive.numbers[site])]

    def spectrum(self, composition: str | Mapping[str, float], **settings: Any) -> DopedSpectrum:
        """Return the DOS of this host with dopants, such as ``Al=0.03,In@Ga=0.01``; see `spectra.pack_spectrum`."""
        from defectnet.crystal.spectra import pack_spectrum

        return pack_spectrum(self, composition, **settings)

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
    def load(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        force_download: bool = False,
    ) -> HostPack:
        """Load a pack by the name of a bundled one, from a folder, or from ``org/repo`` on the Hugging Face Hub.

        Args:
            source: One of the three, see `find_pack`.
            revision: Branch, tag or commit of a repository; a full commit that is in the cache costs no request.
            token: For a private repository; by default the one of ``hf auth login`` or HF_TOKEN.
            force_download: Fetch the files of a repository although they are in the cache.

        Raises:
            SimulationError: There is none; or it is damaged, unknown, or not of this schema.
        """
        folder = find_pack(source, revision=revision, token=token, force_download=force_download)
        try:
            return replace(_unpacked(folder), source=folder.resolve())
        except SimulationError as error:
            wrong = damaged(folder) if folder.parent.name == "snapshots" else []
            if not wrong:
                raise
            raise SimulationError(
                f"{wrong[0]} is damaged",
                why="in the cache; its hash is not the one that the Hub gave it",
                fix=f"Fetch it again: HostPack.load({str(source)!r}, force_download=True)",
            ) from error


def bundled_packs() -> dict[str, Path]:
    """Return name -> folder of the packs that come with the package, sorted by name."""
    root = bundled_root()
    found = [] if root is None else sorted(path.parent for path in (root / "hosts").glob(f"*/{CONFIG}"))
    return {folder.name: folder for folder in found if not folder.name.startswith(".")}


def find_pack(
    source: str | Path, *, revision: str | None = None, token: str | None = None, force_download: bool = False
) -> Path:
    """Return the folder of a pack, fetching it if need be.

    In this order: the name of a bundled pack, in any case; a folder; ``org/repo`` on the Hugging Face Hub. With a
    revision it is a repository.

    Args:
        source: See `HostPack.load`, as all others.
        revision: Of a repository.
        token: For a private one.
        force_download: Whether to fetch it again.

    Raises:
        SimulationError: There is none.
    """
    if not isinstance(source, (str, Path)):
        raise SimulationError(f"a host pack is a folder, not a {type(source).__name__}", fix="Give a name or a path")
    known = {name.lower(): folder for name, folder in bundled_packs().items()}
    folder = known.get(str(source).lower(), home_expanded(source))
    remote = isinstance(source, str) and REPO.fullmatch(source) is not None
    if remote and (revision is not None or force_download or not folder.is_dir()):
        place = Remote(str(source), "model", SimulationError)
        return download(place, FILES, revision=revision, token=token, force_download=force_download)
    if revision is not None or force_download:
        raise SimulationError(
            f"revision or force_download is given with {str(source)!r}, which has none",
            fix="Leave it out; it belongs to repositories (org/repo) only",
        )
    if not folder.is_dir():
        raise SimulationError(
            f"no host pack is called {str(source)!r}, and there is no such folder",
            fix="`defectnet host list` shows the bundled ones; `defectnet host make` makes others",
        )
    return folder


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
    columns: dict[str, list[Any]] = {
        name: [] for name in ("pairs", "blocks", "far_pairs", "far_blocks", "rotations", "sizes")
    }
    for (dopant, site), one in sorted(pack.substitutions.items(), key=lambda item: (item[0][1], INDEX[item[0][0]])):
        group = fixing(host.operations, site, one.rotations)
        pairs, blocks = _local_pairs(one)
        kept, means = reduced(pairs, blocks, group, site)
        columns["pairs"].append(pairs[kept].astype(np.int8))
        columns["blocks"].append(_without_noise(means).astype(np.float16))
        columns["rotations"].append(one.rotations.astype(np.int8))
        far_pairs, far_blocks = _far_pairs(one.far, host)
        columns["far_pairs"].append(far_pairs.astype(np.int8))
        columns["far_blocks"].append(_without_noise(far_blocks).astype(np.float16))
        columns["sizes"].append([len(kept), len(one.rotations), len(far_pairs)])
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
    tensors["far_pairs"] = torch.from_numpy(np.concatenate([np.zeros((0, 8), np.int8), *columns["far_pairs"]]))
    tensors["far_blocks"] = torch.from_numpy(np.concatenate([np.zeros((0, 3, 3), np.float16), *columns["far_blocks"]]))
    tensors["sizes"] = torch.tensor(columns["sizes"], dtype=torch.int32).reshape(-1, 3)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}, table


def _without_noise(blocks: FloatArray) -> FloatArray:
    """Return blocks with zeros where rounding has left something, of either sign: the same bytes every time."""
    return np.where(np.abs(blocks) < NOISE, 0.0, blocks)


def _host_pairs(parts: Sequence[ForceConstants]) -> tuple[IntArray, FloatArray]:
    """Return (B, 8) pairs and (3, B, 3, 3) blocks of a host, without the diagonal and without what is tiny."""
    pairs, blocks = as_pairs(parts)
    sizes = np.linalg.norm(blocks, axis=(2, 3)) * np.array([1.0, STRAIN, 0.5 * STRAIN**2])[:, None]
    kept = sizes.max(0) > HOST_KEEP
    return pairs[kept], blocks[:, kept]


def _far_pairs(far: ForceConstants, host: HostModel) -> tuple[IntArray, FloatArray]:
    """Return (B, 8) pairs and (B, 3, 3) blocks of what a substitution changes far away, without what is tiny."""
    pairs, blocks = as_pairs([far])
    kept, means = reduced(pairs, blocks, host.operations, None)
    large = np.linalg.norm(means[0], axis=(1, 2)) > FAR_KEEP
    return pairs[kept[large]], means[0, large]


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
    parts = from_pairs(len(primitive), *found)
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
        tuple(FailedSubstitution(f["dopant"], f["site"], f["reason"]) for f in config["failures"]),
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


def _substitutions(
    host: HostModel, table: list[dict[str, Any]], tensors: dict[str, torch.Tensor]
) -> dict[tuple[str, int], Substitution]:
    out = {}
    at = turn = out_at = 0
    pairs, blocks = tensors["pairs"].numpy().astype(np.int64), tensors["blocks"].double().numpy()
    rotations = tensors["rotations"].numpy().astype(np.int64)
    far_pairs, far_blocks = tensors["far_pairs"].numpy().astype(np.int64), tensors["far_blocks"].double().numpy()
    for row, (size, count, more) in zip(table, tensors["sizes"].tolist(), strict=True):
        own = rotations[turn : turn + count]
        group = fixing(host.operations, row["site"], own)
        _check_site(host, row, group)
        found, values = expanded(pairs[at : at + size], blocks[:, at : at + size], group, row["site"])
        spread = slice(out_at, out_at + more)
        far = expanded(far_pairs[spread], far_blocks[None, spread], host.operations, None)
        at, turn, out_at = at + size, turn + count, out_at + more
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
            far=from_pairs(len(host.primitive), *far)[0],
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
    if row["replaces"] != SYMBOLS[int(host.primitive.numbers[site])]:
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
        "far_pairs": (torch.int8, (None, 8)),
        "far_blocks": (torch.float16, (None, 3, 3)),
        "rotations": (torch.int8, (None, 3, 3)),
        "sizes": (torch.int32, (None, 3)),
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
    for name in ("host_pairs", "pairs", "far_pairs"):
        ends = tensors[name][:, [0, 4]]
        if bool(((ends < 0) | (ends >= atoms)).any()):
            raise wrong(f"{name} names atoms that are not there")
    if len(tensors["frac"]) != atoms or len(sizes) != len(rows) or bool((sizes < torch.tensor([0, 1, 0])).any()):
        raise wrong("numbers of atoms or substitutions differ")
    if sizes.sum(0).tolist() != [len(tensors[name]) for name in ("pairs", "rotations", "far_pairs")]:
        raise wrong("lengths of the substitutions do not add up")
    for name, axis in (("host_", 1), ("", 1), ("far_", 0)):
        if tensors[f"{name}blocks"].shape[axis] != len(tensors[f"{name}pairs"]):
            raise wrong(f"{name}pairs and {name}blocks differ in number")
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
