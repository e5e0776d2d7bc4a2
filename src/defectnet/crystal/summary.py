"""What is in a host pack, as plain values."""

from __future__ import annotations

from typing import Any

import numpy as np

from defectnet.crystal.pack import HostPack
from defectnet.elements import INDEX


def describe(pack: HostPack) -> dict[str, Any]:
    """Return what a pack holds, for JSON.

    Of a substitution `volume_percent` is the relative change of volume, in percent, that one dopant atom in a hundred
    atoms makes; `energy_ev` is comparable between sites of one element for one dopant only; `largest_change` is that
    of a component of the force constants, eV/angstrom^2.
    """
    host = pack.host
    volume = host.primitive.volume / len(host.primitive)
    order = sorted(pack.substitutions.items(), key=lambda item: (INDEX[item[0][0]], item[0][1]))
    return {
        "id": host.id,
        "formula": host.formula,
        "potential": host.potential,
        "potential_sha256": host.potential_sha256,
        "supercell": host.cell.matrix.tolist(),
        "supercell_atoms": len(host.cell),
        "band_edge_mev": round(host.band_edge_mev, 3),
        "sites": {str(site): pack.replaced(int(site)) for site in host.sites},
        "substitutions": [
            {
                "dopant": dopant,
                "replaces": pack.replaced(site),
                "site": site,
                "volume_percent": round(one.volume / volume, 4),
                "energy_ev": round(one.energy, 5),
                "displacement_angstrom": round(one.displacement, 4),
                "off_centre": bool(one.off_centre),
                "orientations": one.orientations,
                "largest_change": round(float(np.abs(one.change).max(initial=0.0)), 4),
            }
            for (dopant, site), one in order
        ],
        "failures": [
            {"dopant": f.dopant, "replaces": pack.replaced(f.site), "site": f.site, "reason": f.reason}
            for f in pack.failures
        ],
    }
