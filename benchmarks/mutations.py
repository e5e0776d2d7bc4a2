"""Do the tests notice? Small faults, put into a copy of the source one at a time, and the tests that should fail.

    python benchmarks/mutations.py                      # three minutes
    python benchmarks/mutations.py --only noise --json
    python benchmarks/mutations.py --markdown           # for benchmarks/README.md

A fault is killed if one of its tests fails, and has survived if all pass; tests that cannot run are an error, and so is
a text that does not stand in its file exactly once. To add one: a line in `MUTATIONS`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # before numpy is imported

# ruff: noqa: E402, F401
import huggingface_hub
import hypothesis
import lightning
import pandas
import pyarrow.parquet
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path("src") / "defectnet"

M, S, D = "tests/test_measurement.py::test_", "tests/test_spectrum.py::test_", "tests/test_dataset.py::test_"
T, N = "tests/test_task.py::test_", "tests/test_models.py::test_"
OPEN = "tests/test_open_lists.py::test_"


@dataclass(frozen=True)
class Mutation:
    """A fault.

    Attributes:
        step: What it breaks.
        fault: In words.
        file: Below `PACKAGE`.
        before: Text that stands in the file exactly once.
        after: What takes its place.
        tests: What pytest is given; one of them should fail.
    """

    step: str
    fault: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]

    def apply(self, root: Path) -> str:
        """Put the fault into a copy of the source; returns what stood in the file.

        Raises:
            SystemExit: The text is not there exactly once.
        """
        path = root / PACKAGE / self.file
        text = path.read_text(encoding="utf-8")
        if text.count(self.before) != 1:
            raise SystemExit(f"{self.file}: {self.before!r} stands there {text.count(self.before)} times")
        path.write_text(text.replace(self.before, self.after), encoding="utf-8")
        return text


def _of(step: str, file: str, *faults: tuple[str, str, str, tuple[str, ...]]) -> list[Mutation]:
    return [Mutation(step, fault, file, before, after, tests) for fault, before, after, tests in faults]


FORWARD, EFFECTS, SETTINGS = "measure/forward.py", "measure/effects.py", "measure/settings.py"
BROADENING, EDGE, CURVES, ENCODE = "measure/broadening.py", "measure/edge.py", "measure/curves.py", "measure/encode.py"

MUTATIONS: list[Mutation] = [
    *_of(
        "weighting",
        FORWARD,
        (
            "not done",
            "pairs.curves(weights)",
            "pairs.curves(np.ones_like(weights))",
            (f"{M}training_shows_the_kinds_of_dos",),
        ),
    ),
    *_of(
        "weighting",
        EFFECTS,
        (
            "all elements alike for neutrons",
            "NEUTRON_WEIGHT[elements], 1.0)",
            "1.0, 1.0)",
            (f"{M}weights_of_elements",),
        ),
        (
            "projected on an element of the host alone",
            "common = np.intersect1d(host, doped)",
            "common = np.unique(host)",
            (f"{M}what_cannot_be_projected_is_seen_as_a_whole",),
        ),
        (
            "always the first element projected",
            "chosen = common[int(uniform[i] * len(common))]",
            "chosen = common[0]",
            (f"{M}weights_of_elements",),
        ),
    ),
    *_of(
        "weighting",
        SETTINGS,
        (
            "kinds without their odds",
            "odds = np.cumsum(measurement.weights) / sum(measurement.weights)",
            "odds = np.linspace(1.0, 3.0, 3) / 3.0",
            (f"{M}ranges_are_drawn_evenly", f"{M}training_shows_the_kinds_of_dos"),
        ),
    ),
    *_of(
        "resolution",
        FORWARD,
        (
            "not done",
            "curves = with_resolution(pairs.curves(weights), edge, given)",
            "curves = pairs.curves(weights)",
            (f"{M}training_shows_the_resolution",),
        ),
    ),
    *_of(
        "resolution",
        BROADENING,
        (
            "does not grow",
            "np.maximum(1.0 + (growth[:, None] - 1.0) * at, 0.2)",
            "np.maximum(1.0 + 0.0 * growth[:, None] * at, 0.2)",
            (f"{M}broadening_has_the_stated_width", f"{M}training_shows_the_resolution"),
        ),
        (
            "FWHM taken for a standard deviation",
            "FWHM_TO_SIGMA: Final = 1.0 / np.sqrt(8.0 * np.log(2.0))",
            "FWHM_TO_SIGMA: Final = 1.0",
            (f"{M}broadening_has_the_stated_width",),
        ),
        ("lines cut too near", "_REACH: Final = 4.5", "_REACH: Final = 1.0", (f"{M}broadening_of_many",)),
        (
            "kernels lose area",
            "kernel /= kernel.sum(axis=0) if weight is None else weight @ kernel",
            "kernel /= kernel.max(axis=0)",
            (f"{M}broadening_of_many", f"{S}broadening_keeps_area"),
        ),
        (
            "only positive values",
            "filled = np.any(dos != 0, axis=1)",
            "filled = np.any(dos > 0, axis=1)\n    dos = np.maximum(dos, 0.0)",
            (f"{M}broadening_is_linear",),
        ),
        (
            "projected DOS at another resolution",
            "place = ((edges[:, :, None] - at) / sigma[:, None])",
            "place = ((edges[:, :, None] - at) / (3.0 * sigma[:, None]))",
            (f"{M}projected_dos_add_up_to_the_spectra",),
        ),
    ),
    *_of(
        "resolution of the sample",
        EFFECTS,
        (
            "as the host's",
            "fwhm = given.fwhm_ratio[other] * given.fwhm_mev[other]",
            "fwhm = given.fwhm_mev[other]",
            (f"{M}host_and_doped_sample_may_differ_in_resolution", f"{M}training_shows_the_resolution"),
        ),
    ),
    *_of(
        "counting noise",
        FORWARD,
        (
            "no noise at all",
            "noisy = with_noise(curves, given, rngs)",
            "noisy = curves + 0.0",
            (f"{M}training_shows_noise",),
        ),
    ),
    *_of(
        "counting noise",
        EFFECTS,
        (
            "in proportion to the signal",
            "counting *= np.sqrt(np.maximum(dos, 0.0) * peak)",
            "counting *= np.maximum(dos, 0.0)",
            (f"{M}counting_noise_grows",),
        ),
        (
            "for the wrong width of bin",
            "per_bin = np.float32(np.sqrt(NOISE_BIN / STORAGE_GRID.width))",
            "per_bin = np.float32(1.0)",
            (f"{M}noise_has_the_stated_size",),
        ),
        (
            "not cut at zero",
            "np.where(given.noise > 0, 0.0, -np.inf)",
            "np.where(given.noise > 0, -np.inf, -np.inf)",
            (f"{M}counting_noise_grows",),
        ),
        (
            "the same for host and sample",
            "rng.standard_normal(out=counting[number], dtype=np.float32)",
            "counting[number] = rng.standard_normal(dos.shape[2])",
            (f"{M}noise_of_host_and_doped_sample_is_their_own",),
        ),
    ),
    *_of(
        "constant noise",
        EFFECTS,
        (
            "in proportion to the signal",
            "constant *= peak * ((given.floor",
            "constant *= dos * ((given.floor",
            (f"{M}constant_noise_is_everywhere", f"{M}training_shows_noise"),
        ),
        (
            "cut at zero",
            "least = np.where(given.floor > 0, -np.inf,",
            "least = np.where(given.floor > 0, 0.0,",
            (f"{M}constant_noise_is_everywhere", f"{M}training_shows_noise"),
        ),
    ),
    *_of(
        "background",
        FORWARD,
        (
            "not done",
            "curves = with_background(curves, given.background, given.shapes)",
            "curves = curves + 0.0",
            (f"{M}training_shows_backgrounds",),
        ),
    ),
    *_of(
        "background",
        EFFECTS,
        (
            "of another area",
            "factor = share * dos.sum(axis=2) / np.maximum(area, 1e-30)",
            "factor = share * dos.sum(axis=2) / np.maximum(area, 1e-30) * 1.2",
            (f"{M}background_adds_its_area",),
        ),
        (
            "flat alone",
            "flat + falling * shape[1] + rising * shape[2]",
            "flat + falling + rising",
            (f"{M}backgrounds_have",),
        ),
    ),
    *_of(
        "two phonons",
        FORWARD,
        (
            "not done",
            "curves = with_multiphonon(curves, given.multiphonon)",
            "curves = curves + 0.0",
            (f"{M}training_shows_backgrounds",),
        ),
    ),
    *_of(
        "two phonons",
        EFFECTS,
        (
            "wrapped around",
            "np.fft.irfft(np.fft.rfft(dos[some].astype(np.float64), 2 * bins) ** 2, 2 * bins)",
            "np.fft.irfft(np.fft.rfft(dos[some].astype(np.float64), bins) ** 2, bins)",
            (f"{M}what_two_phonons_leave",),
        ),
        ("the DOS itself", "2 * bins) ** 2, 2 * bins)", "2 * bins), 2 * bins)", (f"{M}what_two_phonons_leave",)),
    ),
    *_of(
        "elastic line",
        FORWARD,
        (
            "not done",
            "curves = with_elastic(curves, given.elastic, given.fwhm_mev / edge)",
            "curves = curves + 0.0",
            (f"{M}training_shows_backgrounds",),
        ),
    ),
    *_of(
        "elastic line",
        EFFECTS,
        (
            "of twice the width",
            "(0.5 * fwhm[:, None]) ** 2",
            "fwhm[:, None] ** 2",
            (f"{M}what_the_elastic_line_leaves",),
        ),
        (
            "of another area",
            "wing /= wing[:, :_IN_BAND].sum(axis=1, keepdims=True)",
            "wing /= wing.sum(axis=1, keepdims=True)",
            (f"{M}what_the_elastic_line_leaves",),
        ),
    ),
    *_of(
        "cut-offs",
        FORWARD,
        (
            "not done",
            "cuts = np.minimum(given.cut_low_mev / edge, _HIGHEST_FOOT), given.cut_high, starts",
            "cuts = 0.0 * edge, 3.0 + 0.0 * edge, 0.0 * starts",
            (f"{M}training_shows_cuts",),
        ),
        (
            "low one not in meV",
            "np.minimum(given.cut_low_mev / edge, _HIGHEST_FOOT)",
            "np.minimum(given.cut_low_mev / 40.0, _HIGHEST_FOOT)",
            (f"{M}training_shows_cuts",),
        ),
    ),
    *_of(
        "cut-offs",
        EFFECTS,
        (
            "linear below",
            "foot = (_CENTRES[:below] / _CENTRES[first][:, None]) ** 2",
            "foot = _CENTRES[:below] / _CENTRES[first][:, None]",
            (f"{M}below_the_low_cut_off",),
        ),
        (
            "high one not done",
            "if (last < STORAGE_GRID.bins).any():",
            "if False:",
            (f"{M}cuts_keep_the_middle", f"{M}training_shows_cuts"),
        ),
        ("beginning not cut", "if begin.any():", "if False:", (f"{M}cuts_keep_the_middle", f"{M}training_shows_cuts")),
    ),
    *_of(
        "energy scale",
        FORWARD,
        (
            "not done",
            "edge = pairs.edge_mev * given.energy_factor",
            "edge = pairs.edge_mev + 0.0",
            (f"{M}training_shows_errors_of_the_energy_axis",),
        ),
        (
            "sample as the host",
            "np.stack([np.ones_like(given.doped_factor), given.doped_factor], axis=1)",
            "np.ones((len(edge), 2))",
            (f"{M}training_shows_errors_of_the_energy_axis",),
        ),
    ),
    *_of(
        "energy scale",
        SETTINGS,
        (
            "mismatch one way only",
            "mismatch * (2.0 * more[:, 4] - 1.0)",
            "mismatch * more[:, 4]",
            (f"{M}the_axis_of_the_doped_sample",),
        ),
    ),
    *_of(
        "drawing",
        SETTINGS,
        (
            "no clean share",
            "clean = uniform[:, 0] < measurement.clean_share",
            "clean = uniform[:, 0] < 0.0",
            (f"{M}training_shows_a_share_of_clean_pairs",),
        ),
        (
            "all clean",
            "clean = uniform[:, 0] < measurement.clean_share",
            "clean = uniform[:, 0] < (measurement.clean_share > 0)",
            (f"{M}training_shows_a_share_of_clean_pairs",),
        ),
        (
            "evenly, not in logarithms",
            "value = low * (high / low) ** number if log and low > 0 else low + (high - low) * number",
            "value = low + (high - low) * number",
            (f"{M}ranges_are_drawn_evenly", f"{M}the_conditions_of_shipped_networks"),
        ),
        (
            "faults of raw files change all draws",
            "            if raw:\n                rng.random(out=more[number])",
            "            rng.random(out=more[number])",
            (f"{M}the_conditions_of_shipped_networks",),
        ),
    ),
    *_of(
        "unit area",
        CURVES,
        (
            "not of what is measured",
            "return np.asarray(shares / (area * grid.width), dtype=np.float32)",
            "return np.asarray(shares / grid.width, dtype=np.float32)",
            (f"{M}a_measured_pair_has_unit_area", f"{S}relative_dos_has_unit_area"),
        ),
        (
            "not of the weighted DOS",
            "return np.asarray(dos / np.maximum(dos.sum(axis=-1, keepdims=True) * dos.dtype.type(width), 1e-30))",
            "return dos",
            (f"{M}curves_have_unit_area",),
        ),
    ),
    *_of(
        "band edge",
        EDGE,
        (
            "at another height",
            "EDGE_THRESHOLD: Final = 0.05",
            "EDGE_THRESHOLD: Final = 0.06",
            (f"{S}the_edge_of_noise_free",),
        ),
        (
            "smoothed otherwise",
            "_SMOOTHING: Final = 0.015",
            "_SMOOTHING: Final = 0.02",
            (f"{S}the_edge_of_noise_free",),
        ),
        ("of another share", "_INSIDE: Final = 0.95", "_INSIDE: Final = 0.9", (f"{S}the_edge_of_noise_free",)),
        ("spikes count", "_BRANCH: Final = 0.005", "_BRANCH: Final = 0.0", (f"{S}band_edge_skips_gaps",)),
        ("branches do not count", "_BRANCH: Final = 0.005", "_BRANCH: Final = 0.1", (f"{S}band_edge_skips_gaps",)),
        (
            "the grid's end not checked",
            "np.flatnonzero(at_end >= limit)",
            "np.flatnonzero(at_end > 1e9)",
            (f"{S}a_dos_that_goes_on",),
        ),
        ("to whole cells", "last + 0.5 + part", "last + 1.0", (f"{S}the_edge_of_noise_free",)),
    ),
    *_of(
        "band edge in noise",
        EDGE,
        ("no care", "_QUIET: Final = 0.0015", "_QUIET: Final = 1.0", (f"{S}band_edge_is_robust_to_constant_noise",)),
        ("with little room, too", "_BEYOND: Final = 1.5", "_BEYOND: Final = 1.0", (f"{S}the_edge_of_noise_free",)),
        (
            "insignificant peaks count",
            "_SIGNIFICANT: Final = 4.5",
            "_SIGNIFICANT: Final = 1.0",
            (f"{S}band_edge_is_robust",),
        ),
        ("cut values taken as they are", "_CUT: Final = 0.25", "_CUT: Final = 1.5", (f"{S}band_edge_is_robust",)),
    ),
    *_of(
        "band edge in noise",
        FORWARD,
        ("what was not measured taken for quiet", "span=span, ", "", (f"{M}what_was_not_measured",)),
    ),
    *_of(
        "rebinning",
        CURVES,
        (
            "steps, not lines",
            "place * (curves.take(i + 1) - here)",
            "0.0 * place",
            (f"{S}relative_dos_integrates", f"{M}a_users_files"),
        ),
        (
            "uneven points taken for even ones",
            "return float(energy[-1] - energy[0]) / len(step) if np.ptp(step) <= 1e-9 * energy[-1] else None",
            "return float(energy[-1] - energy[0]) / len(step)",
            (f"{S}conversion_keeps_area", f"{S}resampling_keeps_area"),
        ),
    ),
    *_of(
        "rebinning",
        FORWARD,
        (
            "in units of the true edge",
            "unit = observed[:, None] / np.stack",
            "unit = np.ones_like(observed)[:, None] / np.stack",
            (f"{M}a_users_files", f"{M}the_conditions_of_shipped_networks"),
        ),
    ),
    *_of(
        "encoding",
        ENCODE,
        (
            "edge of the doped sample",
            "edge = host_edge_mev(host) if",
            "edge = host_edge_mev(doped) if",
            (f"{M}a_users_files", f"{S}local_modes_above_the_host_edge"),
        ),
        (
            "given edge not used",
            "edge = host_edge_mev(host) if edge_mev is None else _checked_edge(host, edge_mev)",
            "edge = host_edge_mev(host)",
            (f"{S}a_given_edge", "tests/test_cli.py::test_an_edge_on_the_command_line"),
        ),
        ("another unit", "return rebin(spectrum.energy_mev,", "return rebin(spectrum.energy,", (f"{M}a_users_files",)),
        (
            "without a composition",
            "composition=torch.from_numpy(composition(formula).astype(np.float32))[None],",
            "composition=torch.zeros(1, len(VOCABULARY)),",
            (f"{M}a_users_files",),
        ),
        (
            "candidates said to be named",
            "candidates_given=torch.tensor([candidates is not None]),",
            "candidates_given=torch.tensor([True]),",
            (f"{S}stacking_keeps_rows",),
        ),
        ("host elements in question", "return ~multi_hot(hosts)", "return ~multi_hot(hosts[:1])", (f"{S}blind_asks",)),
    ),
    *_of(
        "batches",
        "data/dataset.py",
        (
            "noise the same in every epoch",
            'row_rng("measurement", sample.row_id, *keys)',
            'row_rng("measurement", sample.row_id, *keys[:1])',
            (f"{D}augmentation_changes_with_the_epoch",),
        ),
        (
            "questions the same in every epoch",
            'row_rng("candidates", sample.row_id, *keys)',
            'row_rng("candidates", sample.row_id, *keys[:1])',
            (f"{D}augmentation_changes_with_the_epoch",),
        ),
        ("always clean", "            self.measurement,\n", "            CLEAN,\n", (f"{M}training_shows_noise",)),
        (
            "concentrations of the wrong rows",
            "concentration[i, sample.dopants] = sample.concentration",
            "concentration[i - 1, sample.dopants] = sample.concentration",
            (f"{D}rows_are_what_their_number_says",),
        ),
    ),
    *_of(
        "candidates",
        "data/candidates.py",
        (
            "always named",
            "(uniform[:, 0] >= settings.blind_share)",
            "(uniform[:, 0] >= 0.0)",
            (f"{D}blind_asks", f"{D}training_asks"),
        ),
        ("none added", "wanted > k", "wanted > 100", (f"{D}candidates_hold_the_dopants",)),
        (
            "host elements added",
            "weights = np.where(masks | taken, 0.0, np.where(by_likeness",
            "weights = np.where(masks, 0.0, np.where(by_likeness",
            (f"{D}candidates_hold_the_dopants",),
        ),
        (
            "likeness without effect",
            "np.where(by_likeness, likely, 1.0)",
            "np.where(by_likeness, 1.0, 1.0)",
            (f"{D}likely_distractors",),
        ),
        (
            "hard negatives not first",
            "< settings.hard_negative_share) & known.any(axis=1)",
            "< 0.0) & known.any(axis=1)",
            (f"{D}hard_negatives",),
        ),
    ),
    *_of(
        "losses",
        "models/losses.py",
        (
            "identity of elements not in question",
            "(cross * batch.candidates)",
            "cross",
            (f"{T}what_is_not_in_question",),
        ),
        (
            "amounts of absent elements",
            "present = targets.present & batch.candidates\n",
            "present = batch.candidates\n",
            (f"{T}hurdle_loss",),
        ),
        ("amounts without their root", "ROOT_SCALE * true.sqrt()", "ROOT_SCALE * true", (f"{T}hurdle_loss",)),
        (
            "expected amount without its probability",
            "return torch.sigmoid(output.identity_logits) * output.concentration_if_present",
            "return output.concentration_if_present",
            (f"{T}hurdle_loss",),
        ),
    ),
    *_of(
        "calibration",
        "models/calibration.py",
        ("temperature the wrong way round", "(x / temperature, y)", "(x * temperature, y)", (f"{T}the_temperature",)),
        (
            "worst threshold",
            "torch.where(ends, f1, -1.0).argmax()",
            "torch.where(ends, f1, 9.0).argmin()",
            (f"{T}the_threshold",),
        ),
        ("interval too narrow", "np.sort(score)[rank - 1]", "np.sort(score)[rank // 2]", (f"{T}the_interval",)),
    ),
    *_of(
        "calibration",
        "models/calibration.py",
        (
            "temperature not applied",
            "double.identity_logits / torch.tensor(temperature, dtype=torch.float64).reshape(-1, 1)",
            "double.identity_logits",
            (f"{N}calibration_is_applied",),
        ),
        (
            "interval of one width",
            "half = self.offset + self.slope * amount",
            "half = self.offset + 0.0 * amount",
            (f"{N}calibration_is_applied",),
        ),
    ),
    *_of(
        "open lists",
        "data/candidates.py",
        (
            "none is missing",
            "masks = dopants & ~(missing",
            "masks = dopants & ~(0 * missing",
            (f"{OPEN}open_lists_miss",),
        ),
        (
            "what is missing is a distractor",
            "taken = ~free | dopants",
            "taken = ~free | masks",
            (f"{OPEN}open_lists_miss",),
        ),
        ("twins without effect", "if twin.any():", "if False:", (f"{OPEN}twins_look_like",)),
    ),
    *_of(
        "something else",
        "models/defectnet.py",
        (
            "also where none are named",
            "LossTerm(cross * given, given)",
            "LossTerm(cross, given)",
            (f"{OPEN}it_learns_from",),
        ),
        ("any dopant", "(targets.present & ~batch.candidates).any", "targets.present.any", (f"{OPEN}it_learns_from",)),
    ),
    *_of(
        "undoped pairs",
        "data/blending.py",
        ("dopants stay", "dopants=row.dopants[:0]", "dopants=row.dopants", (f"{OPEN}undoped_pairs",)),
        ("spectra stay", "codes=np.concatenate([row.codes[:first]] * 2)", "codes=row.codes", (f"{OPEN}undoped_pairs",)),
    ),
    *_of(
        "goodness of fit",
        "models/goodness.py",
        (
            "noise counts",
            "(rest.square().mean(dim=1) - random)",
            "rest.square().mean(dim=1)",
            (f"{OPEN}goodness_finds",),
        ),
        (
            "amounts without bounds",
            "low[:, k]), most[:, k])",
            "low[:, k]), 9.0 + most[:, k])",
            (f"{OPEN}a_bounded_fit",),
        ),
    ),
    *_of(
        "belts",
        "models/belts.py",
        ("one-sided all", "2.0 if two_sided else 1.0", "1.0", (f"{OPEN}belts_cover",)),
        (
            "one belt for all",
            "np.searchsorted(cuts, expected",
            "np.searchsorted(cuts, 0.0 * expected",
            (f"{OPEN}belts_cover",),
        ),
    ),
]


@contextmanager
def copied() -> Iterator[Path]:
    """Give a copy of the source and its tests; what tests only read is linked."""
    with tempfile.TemporaryDirectory(prefix="mutations-") as name:
        root = Path(name)
        ignored = shutil.ignore_patterns("__pycache__")
        for folder in ("src", "tests"):
            shutil.copytree(ROOT / folder, root / folder, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", root)
        for folder in ("checkpoints", "examples", "configs", "benchmarks", "data"):
            (root / folder).symlink_to(ROOT / folder, target_is_directory=True)
        yield root


def passes(root: Path, tests: Sequence[str]) -> bool:
    """Run tests on a copy: by their names' beginnings, whatever they are parametrised with.

    In a child of this process, which has imported what takes long, and nothing of the package.

    Raises:
        SystemExit: They cannot run, which says nothing.
    """
    files = sorted({test.partition("::")[0] for test in tests})
    names = [test.partition("::")[2] for test in tests]
    chosen = ["-k", " or ".join(names)] if all(names) else []
    words = ["-x", "-q", "-p", "no:cacheprovider", f"--rootdir={root}", *files, *chosen]
    with tempfile.TemporaryFile("w+") as told:
        child = os.fork()
        if child == 0:
            code = 3
            try:
                code = _run(root, words, told.fileno())
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code not in (0, 1):
            told.seek(0)
            raise SystemExit(f"{' '.join(tests)} cannot run:\n{told.read()[-2000:]}")
    return code == 0


def _run(root: Path, words: Sequence[str], output: int) -> int:
    """Run pytest in a child process."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(root)
    paths = [str(root / "src"), str(root / "tests")]
    sys.path[:0] = paths
    os.environ |= {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # of processes that tests start
    sys.dont_write_bytecode = True
    gc.freeze()  # pytest collects garbage five times at its end: not through all that was imported before
    return int(pytest.main(list(words)))


def study(mutations: Sequence[Mutation]) -> list[dict[str, object]]:
    """Try mutations one at a time.

    Raises:
        SystemExit: A test fails without any of them.
    """
    found = []
    with copied() as root:
        tests = sorted({test for mutation in mutations for test in mutation.tests})
        if not passes(root, tests):
            raise SystemExit("a test fails without a fault")
        for mutation in mutations:
            begin, path = time.perf_counter(), root / PACKAGE / mutation.file
            text = mutation.apply(root)
            try:
                killed = not passes(root, mutation.tests)
            finally:
                path.write_text(text, encoding="utf-8")
            seconds = round(time.perf_counter() - begin, 1)
            found.append(asdict(mutation) | {"killed": killed, "seconds": seconds})
            told = "killed" if killed else "SURVIVED"
            print(f"{told:9}{mutation.step:26}{mutation.fault:45}{seconds:6} s", file=sys.stderr, flush=True)
    return found


def markdown(found: Sequence[dict[str, object]]) -> str:
    """Return a table with a row for each step."""
    lines = ["| step | faults | killed |", "|---|---|---:|"]
    for step in dict.fromkeys(str(one["step"]) for one in found):
        own = [one for one in found if one["step"] == step]
        faults = "; ".join(f"{one['fault']}{'' if one['killed'] else ' (**survived**)'}" for one in own)
        lines.append(f"| {step} | {faults} | {sum(bool(one['killed']) for one in own)} of {len(own)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="steps whose name holds this")
    parser.add_argument("--json", action="store_true", help="print everything")
    parser.add_argument("--markdown", action="store_true", help="print a table by step")
    options = parser.parse_args()
    chosen = [one for one in MUTATIONS if options.only is None or options.only in one.step]
    if not chosen:
        raise SystemExit(f"no step holds {options.only!r}")
    found = study(chosen)
    if options.json:
        print(json.dumps(found, indent=1))
    elif options.markdown:
        print(markdown(found))
    survived = sum(not one["killed"] for one in found)
    print(f"{len(found) - survived} of {len(found)} killed", file=sys.stderr)
    sys.exit(1 if survived else 0)


if __name__ == "__main__":
    main()
