"""Make the example table of lab spectra: a virtual lab that measures two alloys, Si with Ge and MgB2 with Al.

python examples/make_lab_example.py --potential nep89

The alloys are simulated with the given potential. The lab sees neutron-weighted spectra at its own resolution, with
counting noise, and with an energy axis that is three per cent off: the same for all its spectra. Both hosts are of
chemical systems that no bundled checkpoint was trained on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from defectnet.crystal.doping import DopantMix, build
from defectnet.crystal.hosts import read_hosts
from defectnet.data.shards import Sample
from defectnet.lab.virtual import Instrument, write_lab
from defectnet.potentials.potential import Potential, load_potential
from defectnet.simulate.rows import HostSimulation, SimulationSettings, atom_range, relax_host, row_generator

HOSTS = Path(__file__).parents[1] / "data" / "hosts.json.xz"
FAMILIES = {"Si-diamond": ("Ge", "Si"), "MgB2": ("Al", "Mg")}
"""Host -> dopant, and the element that it replaces."""

CONCENTRATIONS = (0.0, 0.01, 0.02, 0.035, 0.05, 0.07, 0.09, 0.11, 0.14, 0.17, 0.2, 0.225, 0.25)
LAB = Instrument(fwhm_mev=1.5, fwhm_growth=1.6, noise=0.01, energy_factor=1.03)


def simulate(potential: Potential, host_id: str, atoms: str) -> list[Sample]:
    """Simulate the cells of one host: a control without a dopant, and one for each concentration."""
    smallest, largest = atom_range(atoms)
    settings = SimulationSettings(smallest=smallest, largest=largest)
    host = next(host for host in read_hosts(HOSTS) if host.id == host_id)
    world = HostSimulation(potential, host, relax_host(potential, host, settings), settings)
    dopant, replaced = FAMILIES[host_id]
    samples = []
    for number, share in enumerate(CONCENTRATIONS):
        row_id = f"{host_id}-{dopant}/{number:02d}"
        mix = DopantMix((dopant,), (1.0,), share, (replaced,)) if share else DopantMix((), (), 0.0, ())
        cell = build(world.relaxed, mix, row_generator(0, row_id), world.regular)
        samples.append(world.vibrate(row_id, cell).samples[0])
    return samples


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--potential", required=True, help="as for defectnet simulate")
    parser.add_argument("--atoms", default="96-130", help="atoms in a supercell")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "lab", help="folder to write to")
    chosen = parser.parse_args(arguments)
    potential = load_potential(chosen.potential)
    samples = [sample for host_id in FAMILIES for sample in simulate(potential, host_id, chosen.atoms)]
    print(f"{write_lab(chosen.out, samples, LAB)} pairs in {chosen.out}")


if __name__ == "__main__":
    main()
