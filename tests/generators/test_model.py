"""The layout: encoding and decoding are inverse on rows that could be real."""

from dataclasses import replace

import pytest
import torch
from builders import SPEC, make_replay, raw_batch, refresh

from o2o_diffusion.generators.cfdg import CFDG
from o2o_diffusion.generators.layout import Layout

TINY = CFDG.Config(width=8, depth=1, embedding_dim=8, updates=40, batch_size=32, outcome_noise=1.0)
REPLAY = make_replay(offline=300, online=300)
REAL = torch.cat([SPEC.flatten(pool.all()) for pool in (REPLAY.offline, REPLAY.online)])


def fitted(differences: bool = True, *, trained: bool = False) -> Layout:
    generator = CFDG(replace(TINY, differences=differences), SPEC, seed=0)
    if trained:
        refresh(generator, REPLAY)
    generator.model.fit([REPLAY.offline, REPLAY.online], (0.5, 0.5), is_warm=trained)
    return generator.model.layout


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("differences", [True, False])
def test_rows_within_the_limits_come_back(differences, trained):
    layout, rows = fitted(differences, trained=trained), SPEC.flatten(REPLAY.offline.all())
    torch.testing.assert_close(layout.decode(layout.encode(rows, 0), 0), rows, atol=1e-4, rtol=1e-4)
    others = SPEC.flatten(raw_batch(100, SPEC, seed=9)).clamp(layout.bounds.low[1], layout.bounds.high[1])
    torch.testing.assert_close(layout.decode(layout.encode(others, 1), 1), others, atol=1e-4, rtol=1e-4)


def test_decoded_rows_are_in_the_range_of_their_label():
    layout = fitted(trained=True)
    for label, pool in enumerate((REPLAY.offline, REPLAY.online)):
        real = SPEC.flatten(pool.all())
        rows = layout.decode(3 * torch.randn(500, SPEC.row_dim, generator=torch.Generator().manual_seed(0)), label)
        assert (rows >= real.amin(0)).all() and (rows <= real.amax(0)).all()


@pytest.mark.parametrize("differences", [True, False])
def test_before_whitening_the_coordinates_are_standardized_columns(differences):
    """Those of asinh(s' - s) with differences, else of asinh(s'); terminations stay as they are."""
    layout, columns = fitted(differences), SPEC.columns
    x = torch.cat([layout.encode(part, label) for label, part in enumerate(REAL.chunk(2))])
    following = REAL[:, columns["next_observations"]] - differences * REAL[:, columns["observations"]]
    expected = (following - following.mean(0)) / following.std(0, correction=0)
    expected = expected.asinh() / expected.asinh().std(0, correction=0)
    centered = x - x.mean(0)
    expected = expected - expected.mean(0)
    torch.testing.assert_close(centered[:, columns["next_observations"]], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(x[:, :-1].std(0, correction=0), torch.ones(SPEC.row_dim - 1))
    assert torch.equal(x[:, columns["terminations"]], REAL[:, columns["terminations"]])


def test_whitened_actions_no_longer_depend_on_the_state():
    """Actions 0.3 s + noise: residuals have no correlation with s, and the noise's deviation is their scale."""
    replay = make_replay(offline=2_000, online=0)
    states = replay.offline.all().observations
    noise = torch.randn(2_000, 2, generator=torch.Generator().manual_seed(0))
    replay.offline.fields["actions"].copy_(0.3 * states[:, :2] + 0.05 * noise)
    generator = CFDG(replace(TINY, updates=300, whitening=0.9, width=32, learning_rate=5e-3), SPEC, seed=0)
    refresh(generator, replay)
    layout, rows = generator.model.layout, SPEC.flatten(replay.offline.all())
    residuals = layout.encode(rows, 0)[:, SPEC.columns["actions"]]
    assert torch.corrcoef(torch.cat([residuals, states[:, :2]], 1).T)[:2, 2:].abs().max() < 0.1
    assert torch.corrcoef(torch.cat([residuals, noise], 1).T)[[0, 1], [2, 3]].min() > 0.95


def test_without_outcome_noise_outcomes_are_the_regressions_means():
    generator = CFDG(replace(TINY, outcome_noise=0.0), SPEC, seed=0)
    refresh(generator, REPLAY)
    layout, rows = generator.model.layout, SPEC.flatten(REPLAY.offline.all())
    fields, found = layout.split(rows, 0), layout.split(layout.decode(layout.encode(rows, 0), 0))
    with torch.no_grad():
        inputs = torch.cat([fields["label"], fields["observations"], fields["actions"]], dim=1)
        change = layout.whitening.regressions["next_observations"](inputs).mean
    expected = (fields["observations"] + change).clamp(*(getattr(layout.bounds, b)[0, -4:-1] for b in ("low", "high")))
    torch.testing.assert_close(found["next_observations"], expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found["actions"], fields["actions"], atol=1e-4, rtol=1e-4)


def test_moments_weigh_the_pools_by_their_shares():
    """As if the online rows were there three times."""
    replay, real = make_replay(offline=300, online=300), REPLAY.online.all()
    shifted = real.where(observations=real.observations + 3, next_observations=real.next_observations + 3)
    replay.online.append(shifted)
    layout = CFDG(TINY, SPEC, seed=0).model.layout
    layout.fit([replay.offline, replay.online], (0.25, 0.75))
    states = torch.cat([replay.offline.all().observations, shifted.observations.repeat(3, 1)])
    columns = SPEC.columns["observations"]
    torch.testing.assert_close(layout.mean[columns], states.mean(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(layout.std[columns], states.std(0, correction=0), atol=1e-4, rtol=1e-4)


def test_terminations_follow_the_rule_of_real_rows_whatever_was_drawn():
    replay = make_replay(offline=2_000, online=0)
    following = replay.offline.all().next_observations
    replay.offline.fields["terminations"].copy_((following[:, 0] > 1.5).float())
    layout = CFDG(TINY, SPEC, seed=0).model.layout
    layout.fit([replay.offline, replay.online], (1.0, 0.0))
    x = torch.randn(2_000, SPEC.row_dim, generator=torch.Generator().manual_seed(0))
    rows = layout.split(layout.decode(x, 0))
    assert ((rows["next_observations"][:, 0] > 1.5) == (rows["terminations"][:, 0] == 1)).float().mean() > 0.995
