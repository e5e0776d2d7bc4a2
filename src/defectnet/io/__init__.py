"""Readers and writers of spectra: one file per format family, chosen by what a file contains."""

from defectnet.io.objects import as_spectrum
from defectnet.io.read import read_spectrum
from defectnet.io.write import write_spectrum

__all__ = ["as_spectrum", "read_spectrum", "write_spectrum"]
