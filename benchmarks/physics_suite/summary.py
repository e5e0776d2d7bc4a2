"""What each part comes to: the figures by which potentials are compared.

A crystal that a potential does not hold counts as the worst there is, so that failing does not improve a median.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from physics_suite.alloys import BONDS

Record = dict[str, Any]
Items = Mapping[str, Record]


def _held(items: Items) -> list[Record]:
    return [record for record in items.values() if "failed" not in record]


def _median(values: list[float], failed: int) -> float | None:
    """Return the median, failures counted as infinite; None where that is what it comes to."""
    found = float(np.median([*values, *[math.inf] * failed])) if values or failed else math.inf
    return round(found, 4) if math.isfinite(found) else None


def _mean(values: list[float]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None


def curves(items: Items) -> Record:
    """Sum up comparisons of curves: medians of shape distance and of the error of the mean energy."""
    held = _held(items)
    failed = len(items) - len(held)
    errors = [abs(record["mean_error"]) for record in held]
    return {
        "crystals": len(items),
        "failed": failed,
        "shape_distance_median": _median([record["shape_distance"] for record in held], failed),
        "mean_error_median": _median(errors, failed),
        "mean_error_mean": _mean(errors),
        "mean_bias": _mean([record["mean_error"] for record in held]),
        "unstable": sum(record["imaginary_fraction"] > 0.01 for record in held),
    }


def local(items: Items) -> Record:
    """Sum up local modes: mean errors of those that are scored."""
    scored = [record for record in items.values() if record["scored"]]
    held = [record for record in scored if "failed" not in record]
    worst = max(held, key=lambda record: abs(record["ratio_error"]), default=None)
    return {
        "systems": len(scored),
        "failed": len(scored) - len(held),
        "ratio_error_mean": _mean([abs(record["ratio_error"]) for record in held]),
        "frequency_error_mean": _mean([abs(record["error"]) for record in held]),
        "edge_error_mean": _mean([abs(v) for v in {r["host"]: r["edge_error"] for r in held}.values()]),
        "worst": None if worst is None else f"{worst['host']}:{worst['site']}",
        "worst_ratio_error": None if worst is None else worst["ratio_error"],
    }


def isotopes(items: Items) -> Record:
    """Sum up isotope shifts: mean errors of the shift, and of the ratio of the frequencies, which is mass alone."""
    held = _held(items)
    return {
        "failed": len(items) - len(held),
        "shift_error_mean": _mean([abs(record["shift_error"]) for record in held]),
        "ratio_error_mean": _mean([abs(record["ratio_error"]) for record in held]),
    }


def sige(items: Items) -> Record:
    """Sum up SiGe: mean error of the lines, their order, and whether Ge-Ge rises and Si-Si falls with Ge."""
    held = _held(items)
    lines = [[record["lines"][bond]["cm1"] for bond in BONDS] for record in held]
    errors = [abs(record["lines"][bond]["error"]) for record in held for bond in BONDS]
    return {
        "failed": len(items) - len(held),
        "line_error_mean": _mean(errors),
        "line_error_worst": round(max(errors), 4) if errors else None,
        "three_modes": bool(lines) and all(a < b < c for a, b, c in lines),
        "trends": len(lines) > 1 and lines[-1][0] > lines[0][0] and lines[-1][2] < lines[0][2],
    }


def mgb2(items: Items) -> Record:
    """Sum up MgB2: mean error of the optic peaks, how many are missing, and what a quarter of Al does."""
    host, most = items["MgB2"], list(items.values())[-1]
    errors = [abs(error) for error in host.get("error", []) if error is not None]
    return {
        "failed": len(items) - len(_held(items)),
        "peak_error_mean": _mean(errors),
        "peaks_missing": len(host.get("error", [])) - len(errors) if "error" in host else None,
        "al_mean_shift": most.get("mean_shift"),
        "al_shape_distance": most.get("shape_distance"),
    }


def vanadium(items: Items) -> Record:
    """Sum up V with Pt: whether it stiffens."""
    record = items["V:Pt"]
    return {"failed": int("failed" in record), "stiffens": record.get("stiffens"), "shift": record.get("mean_shift")}


def taught(items: Items) -> Record:
    """Sum up the comparison with the teacher, of both kinds of cells together and apart."""
    out = curves(items)
    for kind in ("pristine", "doped"):
        part = {key: record for key, record in items.items() if key.endswith("/doped") == (kind == "doped")}
        if part:
            out[kind] = curves(part)
    held = _held(items)
    out["teacher_unstable"] = sum(record["teacher_imaginary_fraction"] > 0.01 for record in held)
    return out


def hosts(items: Items) -> Record:
    """Sum up imaginary modes: shares of hosts with more than 1 %, or not held, of the potential and of the teacher."""
    return {
        "hosts": len(items),
        "failed": len(items) - len(_held(items)),
        "unstable_share": _mean([float(record.get("unstable", True)) for record in items.values()]),
        "teacher_unstable_share": _mean([float(record["teacher_unstable"]) for record in items.values()]),
    }


def relaxations(items: Items) -> Record:
    """Sum up relaxations: the share of cells that come to rest, and of those that are then another crystal."""
    held = _held(items)
    return {
        "cells": len(items),
        "relaxed_share": round(len(held) / max(1, len(items)), 4),
        "exploded": sum(record.get("failed") == "explodes" for record in items.values()),
        "another_crystal_share": _mean([float(record["another_crystal"]) for record in held]),
        "evaluations_median": _median([record["evaluations"] for record in held], 0),
    }


SUMMARIES: dict[str, Callable[[Items], Record]] = {
    "a": curves,
    "b": local,
    "c": isotopes,
    "d": sige,
    "e": mgb2,
    "f": vanadium,
    "g": taught,
    "h": hosts,
    "i": relaxations,
}
