import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from builders import raw_batch, refresh

from o2o_diffusion.agents import NoAgent, td_errors
from o2o_diffusion.diffusion.sampling import Sampling
from o2o_diffusion.errors import InputError
from o2o_diffusion.generators.pgr import PGR, TopScores, known_returns, scaled
from o2o_diffusion.replay import Replay
from o2o_diffusion.types import UNKNOWN_RETURN, RewardTransform, Source, Transitions, TransitionSpec

SPEC = TransitionSpec(2, 1)
TINY = PGR.Config(
    updates=40,
    whitening=0.0,
    refresh_updates=20,
    batch_size=32,
    width=16,
    depth=1,
    embedding_dim=8,
    sampling=Sampling(num_steps=4),
    curiosity_updates=10,
)


class Rule:
    """pi(s) = s_1 / 2 and Q(s, a) = s_1 + 10 a."""

    def act(self, observations, *, deterministic=False, rng=None):
        assert deterministic
        return observations[:, :1] / 2

    def values(self, observations, actions):
        return observations[:, 0] + 10 * actions[:, 0]

    def log_prob(self, observations, actions):
        raise TypeError("no density")


def rows(size: int, seed: int) -> Transitions:
    """Uniform states of a square, each of which has its first coordinate as return."""
    batch, g = raw_batch(size, SPEC, seed=seed), torch.Generator().manual_seed(seed)
    observations = 2 * torch.rand(size, 2, generator=g) - 1
    return batch.where(
        observations=observations,
        rewards=observations[:, 1],
        next_observations=observations + 0.1 * batch.actions,
        terminations=torch.zeros(size),
        returns=observations[:, 0],
    )


def square(offline: int = 300, online: int = 200, **settings: Any) -> Replay:
    """Both pools hold such rows."""
    replay = Replay(SPEC, {Source.OFFLINE: offline, Source.ONLINE: online}, **settings)
    replay.offline.append(rows(offline, 0))
    replay.online.append(rows(online, 1))
    return replay


@pytest.fixture(scope="module")
def by_return() -> PGR:
    """Trained on the square, conditioned on returns."""
    config = replace(
        TINY, relevance="return", updates=800, width=64, sampling=Sampling(num_steps=12), learning_rate=3e-3
    )
    generator = PGR(config, SPEC, seed=0)
    refresh(generator, square())
    return generator


def test_new_rows_lie_where_scores_are_high(by_return, draw):
    """The highest quarter of uniform returns on [-1, 1] has mean 0.75; no score means no wish."""
    plain = copy.deepcopy(by_return)
    plain.config = replace(plain.config, guidance=0.0)
    high = draw(plain, 400)
    plain.top_scores.fit(torch.full((5,), torch.nan), 0.25)
    any_score = draw(plain, 400)
    assert abs(high.observations[:, 0].mean() - 0.75) < 0.1 and (high.observations[:, 0] > 0.25).float().mean() > 0.85
    assert abs(any_score.observations[:, 0].mean()) < 0.35


def test_guidance_concentrates_rows_at_the_score_asked_for(by_return, draw):
    """For p(x) uniform, p(x|y)^(1 + w) / p(x)^w is narrower than p(x|y) and has the same mean."""
    drawn = []
    for guidance in (0.0, 2.0):
        generator = copy.deepcopy(by_return)
        generator.config = replace(generator.config, guidance=guidance)
        generator.top_scores.fit(torch.full((5,), 0.2), 1.0)
        drawn.append(draw(generator, 400).observations[:, 0])
    assert all(abs(x.mean() - 0.2) < 0.1 for x in drawn) and drawn[1].std() < 0.9 * drawn[0].std()


def test_new_rows_have_half_of_a_batch_and_the_online_label(by_return, draw):
    share = by_return.share(square())
    assert (share.share, share.online) == (0.5, 1.0)
    assert (draw(by_return, 5).sources == Source.GENERATED_ONLINE).all()


def test_scores_are_ranks_from_minus_one_to_one_whatever_their_tails():
    scores = torch.tensor([1e6, torch.nan, 1.0, 2.5, 2.0, 2.0])
    assert torch.allclose(scaled(scores).nan_to_num(9), torch.tensor([1.0, 9, -1, 0.5, -0.25, -0.25]))
    assert (scaled(torch.full((3,), 7.0)) == 0).all() and scaled(torch.full((3,), torch.nan)).isnan().all()


def test_top_scores_are_the_highest_real_ones():
    top, uniform = TopScores(), torch.rand(5_000, generator=torch.Generator().manual_seed(0))
    assert top(uniform).isnan().all()
    scores = torch.linspace(-1, 1, 1_001)
    top.fit(torch.cat([scores.flip(0), torch.full((50,), torch.nan)]), 0.25)
    drawn = top(uniform)
    assert abs(drawn.min() - 0.5) < 1e-3 and drawn.max() == 1 and abs(drawn.mean() - 0.75) < 0.01
    assert torch.isin(drawn, scores).all()


def test_td_error_equals_its_definition():
    batch = rows(6, 2).where(terminations=torch.tensor([0.0, 0, 0, 1, 1, 1]))
    replay = square(transform=RewardTransform(2.0, -1.0), discount=0.9)
    s, a, r, following = batch.observations[:, 0], batch.actions[:, 0], batch.rewards, batch.next_observations[:, 0]
    bootstrap = 0.9 * (following + 10 * following / 2) * (1 - batch.terminations)
    expected = (2 * r - 1 + bootstrap - (s + 10 * a)).abs()
    torch.testing.assert_close(td_errors(Rule(), batch, replay), expected)


def test_unknown_returns_are_no_scores(draw):
    replay = square()
    replay.online.fields["returns"][150:] = UNKNOWN_RETURN
    assert known_returns(replay.online.all()).isnan().sum() == 50
    generator = PGR(replace(TINY, relevance="return"), SPEC, seed=0)
    metrics = refresh(generator, replay)[-1]
    assert generator.scores is not None and generator.scores[150:].isnan().all()
    assert generator.scores[:150].amin() == -1 and generator.scores[:150].amax() == 1
    torch.testing.assert_close(metrics["score"], replay.online.fields["returns"][:150].mean())
    replay.online.fields["returns"][:] = UNKNOWN_RETURN
    assert set(refresh(generator, replay)[-1]) == {"loss"} and len(draw(generator, 10)) == 10


@pytest.mark.parametrize("which", ["online", "all"])
def test_rows_meet_their_own_scores(which):
    replay = square()
    generator = PGR(replace(TINY, relevance="return", rows=which, score_dropout=0.0), SPEC, seed=0)
    refresh(generator, replay)
    batch = generator.real_rows(replay)
    assert set(batch.sources.tolist()) == ({0, 1} if which == "all" else {1})
    returns = torch.cat([pool.all().returns for pool in (replay.offline, replay.online)][which == "online" :])
    ranks = (returns < batch.returns[:, None]).sum(1)
    torch.testing.assert_close(generator.conditions(batch), 2 * ranks / (len(returns) - 1) - 1)


def test_scores_are_dropped_at_their_rate():
    generator = PGR(replace(TINY, relevance="return", batch_size=4_000), SPEC, seed=0)
    replay = square()
    generator.begin_refresh(replay, NoAgent())
    generator.score(replay, NoAgent())
    assert abs(generator.conditions(generator.real_rows(replay)).isnan().float().mean() - 0.25) < 0.03


def test_curiosity_is_trained_first_and_kept():
    generator, replay = PGR(TINY, SPEC, seed=0), square()
    assert generator.next_refresh(replay).updates == 50
    metrics = refresh(generator, replay)
    assert [set(m) for m in metrics[9:11]] == [{"curiosity_loss"}, {"loss", "score", "curiosity_loss"}]
    assert generator.next_refresh(replay).updates == 30 and generator.training.num_steps == 40
    batch = replay.online.all()
    scores = generator.curiosity(batch.observations, batch.actions, batch.next_observations)
    torch.testing.assert_close(generator.scores, scaled(scores.detach()))
    states = torch.cat([replay.offline.all().observations, batch.observations])
    torch.testing.assert_close(generator.curiosity.normalizer.mean, states.mean(0))
    weights = generator.curiosity.encoder[0].weight.clone()
    generator.begin_refresh(replay, NoAgent())
    assert torch.equal(generator.curiosity.encoder[0].weight, weights) and generator.scores is None


@pytest.mark.parametrize("relevance", ["curiosity", "td_error", "return"])
@pytest.mark.parametrize("done", [5, 25])
def test_restoring_inside_a_refresh_continues_bit_for_bit(relevance, done, draw):
    replay, config, agent = square(), replace(TINY, relevance=relevance), Rule()
    first, second = PGR(config, SPEC, seed=0), PGR(config, SPEC, seed=7)
    first.begin_refresh(replay, agent)
    for _ in range(done):
        first.update(replay, agent)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for _ in range(first.next_refresh(replay).updates - done):
        last = [generator.update(replay, agent) for generator in (first, second)]
    assert last[0] == last[1] and first.next_refresh(replay) == second.next_refresh(replay)
    assert torch.equal(draw(first, 8).observations, draw(second, 8).observations)


def test_a_saved_folder_knows_its_scores(by_return, tmp_path, draw):
    by_return.save_pretrained(tmp_path)
    restored = PGR.from_pretrained(tmp_path, seed=5)
    assert torch.equal(restored.top_scores.quantiles, by_return.top_scores.quantiles)
    assert (draw(restored, 100).observations[:, 0] > 0.4).float().mean() > 0.9


def test_mistakes_are_named():
    generator = PGR(replace(TINY, relevance="td_error"), SPEC, seed=0)
    with pytest.raises(InputError, match="needs a policy"):
        refresh(generator, square())
