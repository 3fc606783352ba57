"""The coordinates of a transition model: raw rows to the columns that are diffused, and back."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from o2o_diffusion.generators.bounds import Bounds
from o2o_diffusion.generators.labels import Labels
from o2o_diffusion.generators.surfaces import Surfaces
from o2o_diffusion.generators.whitening import CHAIN, Whitening
from o2o_diffusion.replay import Pool
from o2o_diffusion.types import TransitionSpec

AT_A_TIME = 16_384


class Layout(nn.Module):
    """Maps rows [B, row_dim] to standardized coordinates (`encode`) and coordinates to possible rows (`decode`).

    In order: entries at a bound move outward; s' becomes s' - s (`differences`); actions, outcomes and dense rewards
    become residuals (`whitening`); all columns but terminations are standardized. `decode` undoes this field by field,
    in the order of `CHAIN`: each field is projected onto the real rows' surfaces and range before the next is restored
    from it, and sparse rewards and terminations follow from the next observation where real ones do (`labels`). The
    residuals of outcomes are multiplied by `outcome_noise`: where dynamics are deterministic they are errors of the
    regressions, which drawing them would double.

    A `label` is 0 (offline), 1 (online) or -1 (any), for all rows or [B]; with `labeled`, it determines the range of
    decoded rows and is an input of the whitening. Otherwise every label is taken as -1.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        spec: TransitionSpec,
        *,
        width: int,
        labeled: bool,
        differences: bool,
        bounds: bool,
        surfaces: bool,
        labels: bool,
        outcome_noise: float,
    ):
        super().__init__()
        self.spec, self.labeled, self.differences, self.outcome_noise = spec, labeled, differences, outcome_noise
        self.uses_bounds, self.uses_surfaces, self.uses_labels = bounds, surfaces, labels
        self.bounds = Bounds(spec.row_dim)
        self.surfaces, self.labels = Surfaces(spec.observation_dim), Labels(spec.observation_dim)
        self.whitening = Whitening(spec, width=width)
        self.register_buffer("mean", torch.zeros(spec.row_dim))
        self.register_buffer("std", torch.ones(spec.row_dim))

    @torch.no_grad()
    def fit(self, pools: Sequence[Pool], shares: Sequence[float], *, is_warm: bool = False) -> None:
        """Fit limits, surfaces and labels to the offline and the online pool, then `standardize`.

        If `is_warm`, the whitening keeps the statistics of its inputs and targets, which its weights belong to.
        """
        used = [
            self.spec.flatten(pool.all())[: None if share else 0] for pool, share in zip(pools, shares, strict=True)
        ]
        rows = torch.cat(used)
        sizes = torch.tensor([len(pool) for pool in used], device=rows.device)
        fields = self.split(rows, torch.repeat_interleave(sizes))
        self.bounds.fit(used, push=self.uses_bounds)
        if self.uses_surfaces:
            self.surfaces.fit(fields["observations"])
        if self.uses_labels:
            self.labels.fit(fields, is_sparse=not self.bounds.values[self.spec.columns["rewards"]].isnan().all())
        if not is_warm:
            self.whitening.fit_normalizers(fields, self.targets(rows))
        self.standardize(pools, shares)

    @torch.no_grad()
    def standardize(self, pools: Sequence[Pool], shares: Sequence[float]) -> None:
        """Set mean and standard deviation of the coordinates to those of the pools, weighted by `shares`."""
        used = [(label, pool.all()) for label, (pool, share) in enumerate(zip(pools, shares, strict=True)) if share > 0]
        coordinates = [self._coordinates(self.spec.flatten(batch), label) for label, batch in used]
        mean, std = weighted_moments(coordinates, [share for share in shares if share > 0])
        terminations = self.spec.columns["terminations"]
        mean[terminations], std[terminations] = 0.0, 1.0
        self.mean.copy_(mean)
        self.std.copy_(std)

    @torch.no_grad()
    def encode(self, rows: Tensor, label: int) -> Tensor:
        """The coordinates of raw `rows` of `label`."""
        return (self._coordinates(rows, label) - self.mean) / torch.where(self.std > 0, self.std, 1.0)

    @torch.no_grad()
    def decode(self, x: Tensor, label: int) -> Tensor:
        """Raw rows of coordinates `x` of `label`.

        Rows that are not finite, or start in an ended state, are left out.
        """
        fields = self._decoded(x[x.isfinite().all(1)] * self.std + self.mean, label)
        rows = torch.cat([fields[name] for name in self.spec.columns], dim=1)
        return rows[rows.isfinite().all(1) & ~self.labels.starts_ended(fields["observations"])]

    def actions(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Raw observations and actions of coordinates `x`, differentiable in `x` and not limited to their range."""
        coordinates = self.split(x * self.std + self.mean, -1)
        return coordinates["observations"], self._restored("actions", coordinates, coordinates["actions"])

    def split(self, rows: Tensor, label: Tensor | int = -1) -> dict[str, Tensor]:
        """The fields of flat `rows`, [B, width] each, and the input `label` of the whitening, [B, 1]."""
        labels = torch.as_tensor(label, device=rows.device) if self.labeled else torch.tensor(-1, device=rows.device)
        column = torch.where(labels < 0, 0.0, 2.0 * labels - 1.0).expand(len(rows))[:, None]
        return {name: rows[:, where] for name, where in self.spec.columns.items()} | {"label": column}

    def targets(self, rows: Tensor) -> dict[str, Tensor]:
        """Fields of raw `rows` before whitening: bounds moved outward, and s' - s if `differences`."""
        outward, observations = self.split(self.bounds.outward(rows)), rows[:, self.spec.columns["observations"]]
        if self.differences:
            outward["next_observations"] = outward["next_observations"] - observations
        return outward

    def _coordinates(self, rows: Tensor, label: int) -> Tensor:
        """[B, row_dim] coordinates of raw `rows` of `label` before they are standardized."""
        parts = []
        for part in rows.split(AT_A_TIME):
            fields, targets = self.split(part, label), self.targets(part)
            targets |= {name: self.whitening(name, fields, targets[name]) for name in CHAIN}
            parts.append(torch.cat([targets[name] for name in self.spec.columns], dim=1))
        return torch.cat(parts)

    def _decoded(self, coordinates: Tensor, label: int) -> dict[str, Tensor]:
        """Fields of possible rows of `label`."""
        left = self.split(coordinates, label)
        fields = {"label": left["label"]}
        fields["observations"] = self._possible("observations", left["observations"], label)
        for name in ("actions", "next_observations"):
            fields[name] = self._possible(name, self._restored(name, fields, left[name]), label)
        labels = self.labels(fields["next_observations"])
        fields["terminations"] = _known(labels[:, :1], (left["terminations"] > 0.5).float())
        rewards = self._possible("rewards", self._restored("rewards", fields, left["rewards"]), label)
        return fields | {"rewards": _known(labels[:, 1:], rewards)}

    def _restored(self, name: str, fields: Mapping[str, Tensor], coordinates: Tensor) -> Tensor:
        """[B, width] the field `name` from its coordinates, given the `fields` before it."""
        noise = 1.0 if name == "actions" else self.outcome_noise
        field = self.whitening.invert(name, fields, coordinates, noise=noise)
        return field + fields["observations"] if self.differences and name == "next_observations" else field

    def _possible(self, name: str, field: Tensor, label: int) -> Tensor:
        """Entries of `field` on the surfaces and in the range of real ones."""
        if name.endswith("observations"):
            field = self.surfaces(field)
        return self.bounds.inside(field, self.spec.columns[name], label if self.labeled else -1)


def _known(labels: Tensor, other: Tensor) -> Tensor:
    """`labels` where they are known, else `other`."""
    return torch.where(labels.isnan(), other, labels)


def weighted_moments(fields: Sequence[Tensor], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """[D] mean and standard deviation of `fields` ([N_i, D] each), weighted by `weights`; 0 for constant columns."""
    mean = torch.stack([weight * field.mean(0) for field, weight in zip(fields, weights, strict=True)]).sum(0)
    squares = [(field - mean).square().mean(0) for field in fields]
    variance = torch.stack([weight * square for square, weight in zip(squares, weights, strict=True)]).sum(0)
    std = variance.sqrt()
    return mean, torch.where(std > 1e-6 * (1 + mean.abs()), std, 0.0)
