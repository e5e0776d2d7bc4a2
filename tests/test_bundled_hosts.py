"""The host packs that come with the package."""

from __future__ import annotations

import numpy as np
import pytest

from defectnet.crystal.pack import HostPack, bundled_packs
from defectnet.crystal.superposition import Occupation, Superposition
from defectnet.potentials.potential import load_potential
from packs import bundled

PACKS = sorted(bundled_packs())


@pytest.fixture(scope="module")
def digest():
    return load_potential("nequix").sha256


@pytest.mark.parametrize("name", PACKS)
def test_a_bundled_pack_is_whole_stable_and_of_the_bundled_potential(name, digest):
    pack = HostPack.load(name)
    pack.host.check_stable()
    assert (pack.host.potential, pack.host.potential_sha256) == ("nequix", digest)
    assert len(pack.substitutions) >= 6
    for (dopant, site), one in pack.substitutions.items():
        assert (dopant, site) == (one.dopant, one.site)
        assert site in pack.host.sites
        assert np.abs(one.change).max() > 0.01
        assert abs(one.volume) < 200.0


def test_names_are_found_in_any_case_and_all_packs_are_small():
    folders = bundled_packs()
    small = min(folders, key=lambda name: (folders[name] / "model.safetensors").stat().st_size)
    assert HostPack.load(small.lower()).host.id == HostPack.load(small).host.id
    sizes = [sum(file.stat().st_size for file in folder.iterdir()) for folder in folders.values()]
    assert sum(sizes) < 8e6
    assert max(sizes) < 1.5e6


def test_spectra_of_a_bundled_pack_are_stable():
    pack = bundled("GaAs")
    cell = Superposition(pack.host, pack.substitutions, np.diag([3, 3, 3]), [np.array([0.25, 0.25, 0.25])])
    gallium = [int(k) for k in np.flatnonzero(cell.cell.crystal.numbers == 31)]
    doped = cell.modes(Occupation(tuple(gallium[:2]), ("Al", "In")))
    assert doped.imaginary_fraction == 0.0
    # Aluminium is half as heavy as gallium: its modes lie above those of the host.
    assert doped.energy_mev.max() > 1.1 * cell.host_modes().energy_mev.max()
