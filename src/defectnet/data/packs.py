"""Endless pairs from host packs: a row for each number, by superposed force constants.

Rows come in visits: `visit` numbers in succession have one host and one of its supercells, so that what is read from
the disk and computed of the pristine crystal serves all of them.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from torch import from_numpy

from defectnet.config import STORAGE_GRID, Bounded, bounded
from defectnet.crystal.doping import (
    CONTROLS,
    EVENNESS,
    HIGHEST,
    LOWEST,
    NUMBER_WEIGHTS,
    Placement,
    site_order,
)
from defectnet.crystal.hosts import Host
from defectnet.crystal.make import PLAUSIBLE
from defectnet.crystal.pack import HostPack, bundled_packs, find_pack
from defectnet.crystal.plausible import plausible_dopants
from defectnet.crystal.superposition import Occupation, Superposition
from defectnet.data.sample import Doping, HostSpectrum, make_sample
from defectnet.data.shards import SUPERPOSED, Sample
from defectnet.data.splits import Split, split_of
from defectnet.elements import INDEX
from defectnet.errors import SimulationError
from defectnet.potentials.folder import CONFIG, HOST, read_config
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.phonons import Modes, band_edge, folded, modes, modes_of, projected_dos, q_mesh
from defectnet.potentials.supercells import supercell_matrix

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

HOST_ATTEMPTS: Final = 8
"""Draws that may be rejected before a row takes another host."""

MOST_ATTEMPTS: Final = 64
"""Draws after which a row is given up: the packs are unstable."""


@dataclass(frozen=True)
class PairSettings(Bounded, error=SimulationError):
    """What fixes the rows beside the packs.

    Attributes:
        seed: Seed of the data set.
        smallest, largest: Fewest and most atoms of a supercell.
        cells: Supercells of each host, of sizes in that range.
        visit: Rows in succession that share a host and a supercell.
        number_weights: Chances of 1, 2, ... coexisting dopants.
        lowest: Least concentration of each dopant; the total is log-uniform from as many times this to `highest`.
        highest: Greatest concentration of all dopants together.
        controls: Share of rows without a dopant.
        clustered: Share of rows with clustered dopants.
        plausible: Share of rows whose dopants are all among the likeliest on their sites. In the others at least one
            is not, where the pack has any of either kind.
        imaginary_limit: Largest share of imaginary modes, in host and doped cell.
    """

    seed: int = bounded(0, 0)
    smallest: int = 64
    largest: int = 200
    cells: int = bounded(4, 1)
    visit: int = bounded(8, 1)
    number_weights: tuple[float, ...] = bounded(NUMBER_WEIGHTS, 0.0)
    lowest: float = bounded(LOWEST, above=0.0)
    highest: float = bounded(HIGHEST, above=0.0, most=HIGHEST)
    controls: float = bounded(CONTROLS, 0.0, 1.0)
    clustered: float = bounded(0.1, 0.0, 1.0)
    plausible: float = bounded(0.8, 0.0, 1.0)
    imaginary_limit: float = bounded(0.005, 0.0, 1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "number_weights", tuple(self.number_weights))  # JSON has lists
        super().__post_init__()
        if not 8 <= self.smallest <= self.largest <= 1000:
            raise SimulationError(
                f"atoms: {self.smallest} to {self.largest} is no range within 8 to 1000", fix="Check --atoms"
            )
        self.require(sum(self.number_weights) > 0, "number_weights", "Give chances of 1, 2, ... dopants")
        self.require(self.lowest <= self.highest, "lowest", f"Use {self.highest}, the highest, at most")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return asdict(self) | {"number_weights": list(self.number_weights)}


@dataclass(frozen=True)
class PackFile:
    """A pack of a set, not loaded.

    Attributes:
        folder: Where it is.
        id: Of the host.
        formula: Of the host.
        weights_sha256: Of its numbers.
        potential, potential_sha256: What computed it.
    """

    folder: Path
    id: str
    formula: str
    weights_sha256: str
    potential: str
    potential_sha256: str

    @property
    def split(self) -> Split:
        """Split of the host's chemical system."""
        return split_of(self.host.chemical_system)

    @property
    def host(self) -> Host:
        """The host, without its atoms."""
        return Host(self.id, self.formula, Crystal(np.zeros(0, np.int64), np.eye(3), np.zeros((0, 3))))

    def identity(self) -> dict[str, str]:
        """Return what the rows depend on."""
        return {
            "id": self.id,
            "weights_sha256": self.weights_sha256,
            "potential": self.potential,
            "potential_sha256": self.potential_sha256,
        }


def find_packs(source: str | Path | Sequence[str | Path]) -> tuple[PackFile, ...]:
    """Find packs without loading them.

    Args:
        source: A folder of packs, one pack, the name of a bundled one, or ``bundled``; or a list of these.

    Returns:
        Packs sorted by the id of their host.

    Raises:
        SimulationError: There is none, one is damaged, two are of one host, or a pack holds no substitution.
    """
    sources = [source] if isinstance(source, str | Path) else list(source)
    found = sorted((_read_config(folder) for one in sources for folder in _folders(one)), key=lambda pack: pack.id)
    if not found:
        raise SimulationError("no host packs are named", fix="Name a folder of packs")
    for pack, other in pairwise(found):
        if pack.id == other.id:
            raise SimulationError(
                f"{pack.folder} and {other.folder} are both packs of {pack.id}", fix="Leave one of them out"
            )
    return tuple(found)


def _folders(source: str | Path) -> list[Path]:
    if str(source) == "bundled":
        return list(bundled_packs().values())
    folder = find_pack(source)
    if (folder / CONFIG).is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{CONFIG}") if not path.parent.name.startswith("."))
    if not found:
        raise SimulationError(f"{folder} holds no host packs", fix="Make some with `defectnet host make`")
    return found


def _read_config(folder: Path) -> PackFile:
    texts = dict.fromkeys(("id", "formula", "potential", "potential_sha256"), str)
    config = read_config(folder, HOST, {**texts, "substitutions": list})
    if not config["substitutions"]:
        raise SimulationError(f"host pack {folder} holds no substitution", fix="Make some, or leave the pack out")
    return PackFile(folder, config["id"], config["formula"], config["weights_sha256"], *_potential(config))


def _potential(config: dict[str, Any]) -> tuple[str, str]:
    return config["potential"], config["potential_sha256"]


class Rejected(Exception):  # noqa: N818  (an outcome that is counted, not an error)
    """A draw that does not become a row, with the reason."""


@dataclass(frozen=True)
class Drawn:
    """A row, and what was rejected on the way to it.

    Attributes:
        sample: The row.
        rejects: Id and reason of each draw before it; ids are those of rows with the number of the draw behind.
    """

    sample: Sample
    rejects: tuple[dict[str, str], ...]


class PackPairs:
    """Rows by number: each a function of the settings, the set of packs and its number alone.

    To the last digit that holds with one thread for linear algebra, as all data sets are made.

    Args:
        packs: From `find_packs`.
        settings: See `PairSettings`.
        held: Packs that are kept in memory, up to 50 MB each.
    """

    def __init__(
        self,
        packs: Sequence[PackFile],
        settings: PairSettings = PairSettings(),
        *,
        held: int = 8,
    ) -> None:
        if not packs:
            raise SimulationError("there are no host packs to draw from", fix="Name a folder of packs")
        self.packs, self.settings = tuple(packs), settings
        self._by_id = {pack.id: pack for pack in self.packs}
        self._held: OrderedDict[str, _Host] = OrderedDict()
        self._most = held
        self._cell: tuple[tuple[str, int], _Cell] | None = None

    def of_split(self, split: Split) -> PackPairs:
        """Return the pairs of the packs of one split: other rows under the same numbers.

        Raises:
            SimulationError: No pack is of the split.
        """
        own = [pack for pack in self.packs if pack.split == split]
        if not own:
            raise SimulationError(f"none of {len(self.packs)} host packs is of the split {split!r}", fix="Add others")
        return PackPairs(own, self.settings, held=self._most)

    @property
    def sha256(self) -> str:
        """Hash of the set of packs."""
        digest = hashlib.sha256()
        for pack in self.packs:
            digest.update(f"{pack.id} {pack.weights_sha256}\n".encode())
        return digest.hexdigest()

    def row(self, number: int) -> Sample:
        """Return a row.

        Args:
            number: From 0 on.

        Raises:
            SimulationError: Whatever is drawn is rejected: the packs are unstable in these cells.
        """
        return self.draw(number).sample

    def draw(self, number: int) -> Drawn:
        """Return a row with what was rejected on the way to it; see `row`."""
        rejects: list[dict[str, str]] = []
        for attempt in range(MOST_ATTEMPTS):
            pack, choice = self._choose(number, attempt // HOST_ATTEMPTS)
            row_id = f"{pack.id}/{number:08d}"
            try:
                rng = np.random.default_rng([self.settings.seed, 0, number, attempt])
                return Drawn(self._on(pack, choice).row(row_id, rng), tuple(rejects))
            except Rejected as rejected:
                rejects.append({"id": f"{row_id}/{attempt}", "reason": str(rejected)})
        reasons = Counter(reject["reason"] for reject in rejects).most_common()
        raise SimulationError(
            f"row {number}: {MOST_ATTEMPTS} draws were rejected",
            why=", ".join(f"{count} for {reason}" for reason, count in reasons),
            fix="Leave out packs that are unstable, or allow other sizes",
        )

    def hard_negatives(self, sample: Sample) -> tuple[int, ...]:
        """Return the positions of all dopants of a row's pack in the vocabulary, sorted."""
        return self._load(self._by_id[sample.host_id]).dopants

    def _choose(self, number: int, turn: int) -> tuple[PackFile, int]:
        """Return the pack and the number of its supercell; `turn` counts the hosts that were given up."""
        rng = np.random.default_rng([self.settings.seed, 1, number // self.settings.visit, turn])
        pack = self.packs[int(rng.integers(len(self.packs)))]
        return pack, int(rng.integers(self.settings.cells))

    def _load(self, pack: PackFile) -> _Host:
        if pack.id not in self._held:
            self._held[pack.id] = _Host(pack, self.settings)
            if len(self._held) > self._most:
                self._held.popitem(last=False)
        self._held.move_to_end(pack.id)
        return self._held[pack.id]

    def _on(self, pack: PackFile, choice: int) -> _Cell:
        """Return a supercell of a pack; the last one is kept."""
        if self._cell is None or self._cell[0] != (pack.id, choice):
            self._cell = None  # its memory goes first
            self._cell = (pack.id, choice), _Cell(self._load(pack), choice)
        return self._cell[1]


class _Host:
    """A loaded pack: what can be drawn, and where."""

    def __init__(self, file: PackFile, settings: PairSettings) -> None:
        pack = HostPack.load(file.folder)
        self.file, self.pack, self.settings = file, pack, settings
        self.crystal = pack.host.primitive
        likely = {*plausible_dopants(self.crystal, PLAUSIBLE)}
        self.pairs: list[tuple[str, str]] = []
        for name in pack.dopants:
            dopant, _, replaced = name.partition("@")
            self.pairs.append((dopant, replaced))
        self.plausible = np.array([name in likely for name in pack.dopants])
        self.dopants = tuple(sorted({INDEX[dopant] for dopant, _ in self.pairs}))
        self.orbits = pack.host.operations.orbits()
        self._matrices: dict[int, IntArray] = {}

    def allowed(self, dopant: str, replaced: str) -> IntArray:
        """Return the inequivalent sites that a dopant can take in place of an element."""
        sites = [s for x, s in self.pack.substitutions if x == dopant and self.pack.replaced(s) == replaced]
        return np.array(sites, dtype=np.int64)

    def matrix(self, choice: int) -> IntArray:
        """Return one of the host's supercells: sizes are spread over the range, so that they do not tell the host."""
        if choice not in self._matrices:
            settings = self.settings
            digest = hashlib.sha256(self.file.id.encode()).digest()
            rng = np.random.default_rng([settings.seed, 2, int.from_bytes(digest[:8], "big"), choice])
            cuts = np.linspace(settings.smallest, settings.largest, settings.cells + 1)
            part = int(np.ceil(cuts[choice])), int(cuts[choice + 1])
            wanted = round(rng.uniform(*part))
            found = self._supercell(wanted, part)
            if found is None:
                found = self._supercell(wanted, (settings.smallest, settings.largest))
            if found is None:
                raise Rejected("no supercell of an allowed size")
            self._matrices[choice] = found
        return self._matrices[choice]

    def _supercell(self, wanted: int, bounds: tuple[int, int]) -> IntArray | None:
        try:
            return supercell_matrix(self.crystal.cell, len(self.crystal), wanted, bounds)
        except SimulationError:
            return None


class _Cell:
    """A supercell of a host, its superposition and its pristine spectrum."""

    def __init__(self, host: _Host, choice: int) -> None:
        self.host, self.settings = host, host.settings
        self.matrix = host.matrix(choice)
        self.mesh = q_mesh(len(host.crystal) * round(abs(np.linalg.det(self.matrix))))
        self.superposition = Superposition(host.pack.host, host.pack.substitutions, self.matrix, self.mesh)
        self.crystal = self.superposition.cell.crystal
        self.orbit = host.orbits[self.superposition.cell.basis]

    @cached_property
    def pristine(self) -> HostSpectrum:
        """The host's spectrum: by the small cell, at the wave vectors that fold onto those of the supercell."""
        file, crystal = self.host.file, self.host.crystal
        points = [k for q in self.mesh for k in folded(self.matrix, q)]
        found = modes(self.host.pack.host.force_constants, crystal, points)
        if found.imaginary_fraction > self.settings.imaginary_limit:
            raise Rejected("imaginary modes in the host")
        edge_mev = band_edge(found)
        return HostSpectrum(
            Host(file.id, file.formula, crystal),
            self.matrix,
            edge_mev,
            projected_dos(found, crystal, edge_mev, STORAGE_GRID)[0],
            file.potential,
            file.potential_sha256,
        )

    def row(self, row_id: str, rng: np.random.Generator) -> Sample:
        """Draw what is substituted, and take the spectrum.

        Raises:
            Rejected: A dopant finds no site, or host or doped cell have imaginary modes.
        """
        pristine = self.pristine
        doping = self.doping(rng)
        occupation = Occupation(tuple(doping.sites.tolist()), doping.symbols)
        found = self.phonons(occupation, rng)
        if found.imaginary_fraction > self.settings.imaginary_limit:
            raise Rejected("imaginary modes in the doped cell")
        numbers = self.superposition.numbers(occupation)
        return make_sample(
            row_id,
            pristine,
            doping,
            numbers,
            found,
            qpoints=len(self.mesh),
            seed=self.settings.seed,
            source=SUPERPOSED,
        )

    def phonons(self, occupation: Occupation, rng: np.random.Generator) -> Modes:
        """Diagonalise in single precision: energies are the same within 1e-3 meV, in half the time."""
        hessians = self.superposition.hessians(occupation, rng)
        single = hessians.astype(np.complex64 if np.iscomplexobj(hessians) else np.float32)
        return modes_of(map(from_numpy, single), self.superposition.crystal(occupation), self.mesh)

    def doping(self, rng: np.random.Generator) -> Doping:
        """Draw dopants, concentrations and sites.

        Raises:
            Rejected: Others have taken all sites of a dopant.
        """
        settings, atoms = self.settings, len(self.crystal)
        if rng.random() < settings.controls:
            return Doping(np.zeros(0, dtype=np.int64), (), "random")
        pairs, stratum = self._pairs(rng)
        count = len(pairs)
        total = float(
            np.exp(rng.uniform(np.log(min(settings.lowest * count, settings.highest)), np.log(settings.highest)))
        )
        wished = int(np.clip(round(total * atoms), count, max(count, int(settings.highest * atoms))))
        shares = rng.dirichlet(np.full(count, EVENNESS))
        counts = 1 + rng.multinomial(wished - count, shares)
        placement: Placement = "clustered" if rng.random() < settings.clustered else "random"
        order = site_order(self.crystal, placement, wished, rng)
        free = np.ones(atoms, dtype=bool)
        sites: list[int] = []
        symbols: list[str] = []
        for (dopant, replaced), more in zip(pairs, counts, strict=True):
            fitting = np.isin(self.orbit, self.host.allowed(dopant, replaced)) & free
            chosen = order[fitting[order]][:more]
            if not len(chosen):
                raise Rejected("no site is left for a dopant")
            free[chosen] = False
            sites += chosen.tolist()
            symbols += [dopant] * len(chosen)
        return Doping(
            np.array(sites, dtype=np.int64), tuple(symbols), placement if len(sites) > 1 else "random", stratum
        )

    def _pairs(self, rng: np.random.Generator) -> tuple[list[tuple[str, str]], str]:
        """Draw dopants with the elements that they replace, each dopant once, and the stratum that they are of."""
        host, settings = self.host, self.settings
        wanted = bool(rng.random() < settings.plausible)
        plausible = wanted if (host.plausible == wanted).any() else not wanted
        pool = [pair for pair, likely in zip(host.pairs, host.plausible, strict=True) if likely or not plausible]
        first = [pair for pair, likely in zip(host.pairs, host.plausible, strict=True) if likely == plausible]
        weights = np.array(settings.number_weights[: len({dopant for dopant, _ in pool})])
        if not weights.any():
            weights = np.eye(1, len(weights), len(weights) - 1)[0]  # the most that the pack has
        count = int(rng.choice(len(weights), p=weights / weights.sum())) + 1
        chosen: list[tuple[str, str]] = []
        while len(chosen) < count:
            taken = {dopant for dopant, _ in chosen}
            left = [pair for pair in (pool if chosen else first) if pair[0] not in taken]
            dopants = list(dict.fromkeys(dopant for dopant, _ in left))
            dopant = dopants[int(rng.integers(len(dopants)))]
            own = [pair for pair in left if pair[0] == dopant]
            chosen.append(own[int(rng.integers(len(own)))])
        chosen = [chosen[i] for i in rng.permutation(count)]  # the first one has the choice of sites
        return chosen, "plausible" if plausible else "arbitrary"
