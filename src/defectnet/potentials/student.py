"""The student: a NEP whose numbers are made from embeddings of the elements.

A NEP of 62 elements has a set of radial functions for each of 3,844 pairs and a network for each element: far more
than some thousand labels can fix. Here all of them are a shared part plus a low-rank sum over embeddings, so that rare
elements learn from common ones. What comes out is a plain NEP: its energy is a function of additive sums of atoms, its
Hessian is exact, and its file is read by whatever reads NEP files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from defectnet.elements import NUMBERS, VOCABULARY, properties
from defectnet.potentials.batch import CellBatch
from defectnet.potentials.form import StudentConfig, element_features
from defectnet.potentials.nep import NEP
from defectnet.potentials.nep_file import NEPParameters, read_nep, write_nep

ELEMENTS: Final = len(VOCABULARY)

_DEFAULT: Final = StudentConfig()
_RIDGE = 1e-3
"""Pull of an element's reference energy to the mean, in units of one cell of that element alone."""


class Student(nn.Module):
    """Makes the numbers of a NEP of all 62 elements; E elements, Q invariants.

    Attributes:
        masses: (E,) u.
        references: (E,) energy of each element in the teacher's own reference, eV; not part of the potential.
        scaler: (Q,) scale of the invariants.
        prepared: 1 once `prepare` has been called, else 0.

    Args:
        config: Its form.
    """

    features: Tensor
    masses: Tensor
    references: Tensor
    scaler: Tensor
    prepared: Tensor

    def __init__(self, config: StudentConfig = _DEFAULT) -> None:
        super().__init__()
        self.config = c = config
        self.sizes = (c.n_radial * c.basis_radial, c.n_angular * c.basis_angular)
        self.net_sizes = (c.neurons * c.descriptors, c.neurons, c.neurons)
        self.register_buffer("features", element_features(), persistent=False)
        self.embed = nn.Sequential(nn.Linear(self.features.shape[1], 32), nn.Tanh(), nn.Linear(32, c.embedding))
        self.residual = nn.Parameter(0.01 * torch.randn(ELEMENTS, c.embedding))
        # the bias of each factor brings in terms of one end of the pair alone
        self.centre = nn.Linear(c.embedding, c.rank)
        self.neighbour = nn.Linear(c.embedding, c.rank)
        self.kind = nn.Linear(c.embedding, c.net_rank)
        self.pair_base = nn.Parameter(0.3 * torch.randn(sum(self.sizes)))
        self.pair_terms = nn.Parameter(0.5 / math.sqrt(c.rank) * torch.randn(c.rank, sum(self.sizes)))
        self.net_base = nn.Parameter(self._random_nets(1)[0])
        self.net_terms = nn.Parameter(0.3 / math.sqrt(c.net_rank) * self._random_nets(c.net_rank))
        self.register_buffer("masses", torch.tensor(properties("mass_u")), persistent=False)
        self.register_buffer("references", torch.zeros(ELEMENTS, dtype=torch.float64))
        self.register_buffer("scaler", torch.ones(c.descriptors, dtype=torch.float64))
        # a float, so that averages of weights carry it along
        self.register_buffer("prepared", torch.zeros((), dtype=torch.float64))

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        c = self.config
        return {
            "w0": (ELEMENTS, c.neurons, c.descriptors),
            "b0": (ELEMENTS, c.neurons),
            "w1": (ELEMENTS, c.neurons),
            "b1": (),
            "c_radial": (ELEMENTS, ELEMENTS, c.n_radial, c.basis_radial),
            "c_angular": (ELEMENTS, ELEMENTS, c.n_angular, c.basis_angular),
        }

    def _random_nets(self, count: int) -> Tensor:
        """Random networks, (count, numbers): first weights for invariants of unit variance, biases, second weights."""
        c = self.config
        first = torch.randn(count, self.net_sizes[0]) / math.sqrt(c.descriptors)
        last = torch.randn(count, c.neurons) / math.sqrt(c.neurons)
        return torch.cat([first, torch.zeros(count, c.neurons), last], dim=1)

    # -- the potential -----------------------------------------------------------------------------------------

    def embeddings(self) -> Tensor:
        """Return (E, d) embeddings: a function of physical properties, and what each element adds of its own."""
        out: Tensor = self.embed(self.features)
        return out + self.residual

    def tables(self, dtype: torch.dtype = torch.float64) -> NEPParameters:
        """Make the numbers of the potential; gradients flow to the embeddings and their factors."""
        c, shapes = self.config, self._shapes()
        embedded = self.embeddings()
        products = self.centre(embedded)[:, None] * self.neighbour(embedded)[None, :]  # (E, E, rank)
        pair = products.flatten(0, 1) @ self.pair_terms + self.pair_base
        net = self.kind(embedded) @ self.net_terms + self.net_base
        parts = dict(zip(("c_radial", "c_angular"), pair.split(self.sizes, dim=1), strict=True))
        parts |= dict(zip(("w0", "b0", "w1"), net.split(self.net_sizes, dim=1), strict=True))
        parts["b1"] = pair.new_zeros(())
        tables = {name: part.reshape(shapes[name]).to(dtype) for name, part in parts.items()}
        return NEPParameters(
            name="student",
            sha256="",
            species=tuple(NUMBERS.tolist()),
            cutoff_radial=c.cutoff_radial,
            cutoff_angular=c.cutoff_angular,
            zbl_inner=c.zbl_inner,
            zbl_outer=c.zbl_outer,
            l_max=c.l_max,
            with_4body=c.four_body,
            with_5body=c.five_body,
            scaler=self.scaler.to(dtype),
            **tables,
        )

    def nep(self, dtype: torch.dtype = torch.float64) -> NEP:
        """Return the potential as it stands, on the student's device; gradients flow to the student if enabled."""
        return NEP(self.tables(dtype), self.scaler.device, dtype)

    @torch.no_grad()
    def potential(self) -> NEP:
        """Return the potential as it stands, to be evaluated like any other."""
        return self.nep()

    def forward(self, batch: CellBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Return (B,) energies with references in eV, (N, 3) forces and (B, 3, 3) stresses, in the batch's dtype."""
        energies, forces, virials = self.nep(batch.forces.dtype).forces_many(
            batch.types, batch.pairs, batch.bounds, second=False
        )
        return energies + self.reference_energies(batch).to(energies), forces, virials / batch.volume[:, None, None]

    def reference_energies(self, batch: CellBatch) -> Tensor:
        """Return (B,) sums of the elements' references, eV, in float64."""
        return self._counts(batch) @ self.references

    def _counts(self, batch: CellBatch) -> Tensor:
        """(B, E) atoms of each element."""
        counts = self.references.new_zeros(len(batch.volume), ELEMENTS)
        counts.index_put_((batch.cell_of_atom, batch.types), counts.new_ones(()), accumulate=True)
        return counts

    # -- what is taken from data -------------------------------------------------------------------------------

    @torch.no_grad()
    def prepare(self, batches: Iterable[CellBatch]) -> None:
        """Scale the invariants, centre the networks, bring forces to a sensible size, fit the references.

        Args:
            batches: Of training data.
        """
        found = list(batches)
        self._scale(found)
        self._calm([batch for batch in found if bool(batch.labelled.any())])
        self._fit_references([batch for batch in found if bool(batch.labelled.any())])
        self.prepared.fill_(1.0)

    def _scale(self, batches: Sequence[CellBatch]) -> None:
        self.scaler.fill_(1.0)
        nep = self.nep(batches[0].forces.dtype)
        values = torch.cat([nep.descriptors(nep.sums(b.types, b.pairs, second=False)) for b in batches]).double()
        self.scaler.copy_(1.0 / values.std(0).clamp_min(1e-6))
        w0, bias, _ = torch.split(self.net_base, list(self.net_sizes))
        mean = (values.mean(0) * self.scaler).to(w0)
        bias.copy_(w0.view(self.config.neurons, -1) @ mean)

    def _calm(self, batches: Sequence[CellBatch]) -> None:
        """Scale the networks' output until typical forces are half of those that are to be learnt."""
        ours = torch.cat([self(b)[1][b.labelled[b.cell_of_atom]].abs().mean(1) for b in batches]).median()
        theirs = torch.cat([b.forces[b.labelled[b.cell_of_atom]].abs().mean(1) for b in batches]).median()
        self.amplify(float(0.5 * (theirs / ours.clamp_min(1e-6)).clamp(1e-3, 1e3)))

    @torch.no_grad()
    def amplify(self, gain: float) -> None:
        """Multiply the energy of all atoms by a factor: forces and second derivatives follow; ZBL stays."""
        for numbers in (self.net_base, self.net_terms):
            numbers[..., -self.config.neurons :] *= gain

    def _fit_references(self, batches: Sequence[CellBatch]) -> None:
        """Least squares of what the potential leaves of the energies per atom, on the composition."""
        self.references.zero_()
        shares, rest = [], []
        for batch in batches:
            energies = self(batch)[0].double()
            shares.append((self._counts(batch) / batch.sizes[:, None])[batch.labelled])
            rest.append(((batch.energy - energies) / batch.sizes)[batch.labelled])
        if shares:
            x, y = torch.cat(shares), torch.cat(rest)
            mean = y.mean()
            pull = torch.eye(ELEMENTS, dtype=x.dtype, device=x.device)  # an element without labels gets the mean
            self.references.copy_(mean + torch.linalg.solve(x.T @ x + _RIDGE * pull, x.T @ (y - mean)))

    def export(self, path: str | Path) -> NEPParameters:
        """Write the potential as a NEP file, and return what is read back from it."""
        write_nep(path, self.tables())
        return read_nep(path)
