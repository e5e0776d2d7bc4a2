"""Known-crystal inference: dopants and concentrations from spectra that superposed force constants predict."""
