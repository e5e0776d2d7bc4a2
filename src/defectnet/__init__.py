"""Which dopants are in a crystal, and how much: from its phonon density of states.

import defectnet
model = defectnet.from_pretrained("defectnet-base")
model.predict(host="host.csv", doped="doped.csv", formula="GaAs").to_frame()
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from defectnet.crystal.pack import HostPack
    from defectnet.data.frame import load_dataset
    from defectnet.hub import from_pretrained, list_checkpoints
    from defectnet.inference.comparison import Standard
    from defectnet.inference.known_crystal import KnownCrystal
    from defectnet.inference.plan import plan
    from defectnet.inference.responses import compute_responses
    from defectnet.io import read_spectrum
    from defectnet.pipeline import answer_from_dict, identify, identify_table
    from defectnet.prediction import Prediction, Unanswered
    from defectnet.spectrum import Spectrum

__version__: str = version("defectnet")
__all__ = [
    "HostPack",
    "KnownCrystal",
    "Prediction",
    "Spectrum",
    "Standard",
    "Unanswered",
    "__version__",
    "answer_from_dict",
    "compute_responses",
    "from_pretrained",
    "identify",
    "identify_table",
    "list_checkpoints",
    "load_dataset",
    "plan",
    "read_spectrum",
]

# Loaded on first use: `import defectnet`, and so every command line, starts without torch.
_HOMES = {
    "HostPack": "defectnet.crystal.pack",
    "KnownCrystal": "defectnet.inference.known_crystal",
    "Prediction": "defectnet.prediction",
    "Spectrum": "defectnet.spectrum",
    "Standard": "defectnet.inference.comparison",
    "Unanswered": "defectnet.prediction",
    "answer_from_dict": "defectnet.pipeline",
    "compute_responses": "defectnet.inference.responses",
    "from_pretrained": "defectnet.hub",
    "identify": "defectnet.pipeline",
    "identify_table": "defectnet.pipeline",
    "list_checkpoints": "defectnet.hub.catalogue",
    "load_dataset": "defectnet.data.frame",
    "plan": "defectnet.inference.plan",
    "read_spectrum": "defectnet.io",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'defectnet' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
