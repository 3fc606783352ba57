"""Normalizing and postprocessing are inverse on rows that could be real."""

from dataclasses import replace

import pytest
import torch
from builders import SPEC, make_replay, raw_batch

from o2o_diffusion.generators.cfdg import CFDG
from o2o_diffusion.generators.model import TransitionDenoiser

TINY = CFDG.Config(width=8, depth=1, embedding_dim=8)
REPLAY = make_replay(offline=300, online=300)


def fitted(differences: bool) -> TransitionDenoiser:
    model = CFDG(replace(TINY, differences=differences), SPEC, seed=0).model
    model.fit([REPLAY.offline, REPLAY.online], (0.5, 0.5))
    return model


@pytest.mark.parametrize("differences", [True, False])
def test_rows_within_the_limits_come_back(differences):
    model, rows = fitted(differences), SPEC.flatten(REPLAY.offline.all())
    torch.testing.assert_close(model.postprocess(model.normalize(rows)), rows)
    others = SPEC.flatten(raw_batch(100, SPEC, seed=9)).clamp(model.low, model.high)
    torch.testing.assert_close(model.postprocess(model.normalize(others)), others)


@pytest.mark.parametrize("differences", [True, False])
def test_what_is_modeled_has_unit_variance(differences):
    """With differences that is s' - s, else s'; terminations stay as they are."""
    model, real = fitted(differences), [pool.all() for pool in (REPLAY.offline, REPLAY.online)]
    rows, columns = torch.cat([SPEC.flatten(batch) for batch in real]), SPEC.columns
    normal = model.normalize(rows)
    following = rows[:, columns["next_observations"]] - differences * rows[:, columns["observations"]]
    expected = (following - following.mean(0)) / following.std(0, correction=0)
    torch.testing.assert_close(normal[:, columns["next_observations"]], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(normal[:, :-1].std(0, correction=0), torch.ones(SPEC.row_dim - 1))
    assert torch.equal(normal[:, columns["terminations"]], rows[:, columns["terminations"]])


def test_the_normalizer_weighs_the_pools_by_their_shares():
    """As if the online rows were there three times."""
    model, real = fitted(True), [pool.all() for pool in (REPLAY.offline, REPLAY.online)]
    shifted = real[1].where(observations=real[1].observations + 3, next_observations=real[1].next_observations + 3)
    replay = make_replay(offline=300, online=300)
    replay.online.append(shifted)
    model.fit([replay.offline, replay.online], (0.25, 0.75))
    states = torch.cat([real[0].observations, shifted.observations.repeat(3, 1)])
    columns = SPEC.columns["observations"]
    torch.testing.assert_close(model.mean[columns], states.mean(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.std[columns], states.std(0, correction=0), atol=1e-4, rtol=1e-4)
