import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch

from o2o_diffusion import Augmenter, TransitionSpec
from o2o_diffusion.errors import InputError
from o2o_diffusion.quality import residuals
from o2o_diffusion.schedule import OPEN
from o2o_diffusion.training.checkpoint import load_checkpoint, save_checkpoint
from o2o_diffusion.types import Source

TINY = [
    "updates=20", "refresh_updates=10", "num_samples=200", "first_refresh=40", "refresh_interval=30", "batch_size=32",
    "width=16", "depth=1", "embedding_dim=8", "sampling.num_steps=4", "gate.rows=0",
]  # fmt: skip
STRICT = ["gate.rows=50", "gate.outside_range=0", "gate.at_limits=0"]
"""A gate that refuses the rows of a generator that has hardly been trained."""


def arrays(size: int = 300, scale: float = 1.0, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows around 2 with actions in [-scale, scale]."""
    random = np.random.default_rng(seed)
    observations, actions = 2 + 0.1 * random.normal(size=(size, 2)), scale * random.uniform(-1, 1, (size, 1))
    terminations = random.random(size) < 0.2
    following = observations + 0.1 * actions
    return dict(zip(FIELDS, (observations, actions, -actions[:, 0], following, terminations), strict=True))


FIELDS = ("observations", "actions", "rewards", "next_observations", "terminations")


class Batch(NamedTuple):
    """Fields of CleanRL and SB3, in their order, which is not ours."""

    observations: torch.Tensor
    actions: torch.Tensor
    next_observations: torch.Tensor
    dones: torch.Tensor
    rewards: torch.Tensor
    discounts: torch.Tensor | None = None


class Buffer:
    """A replay buffer as users write them; every row it was given is in `rows`."""

    def __init__(self):
        self.rows: list[tuple] = []
        self.random = np.random.default_rng(0)

    def add(self, obs, next_obs, action, reward, done, infos):
        self.rows.append((np.array(obs), np.array(action), np.array(next_obs), np.array([done]), np.array([reward])))

    def sample(self, batch_size):
        chosen = [self.rows[row] for row in self.random.integers(len(self.rows), size=batch_size)]
        return Batch(*(torch.tensor(np.array(column), dtype=torch.float32) for column in zip(*chosen, strict=True)))

    def __len__(self):
        return len(self.rows)


@pytest.fixture(scope="module")
def fitted() -> Augmenter:
    """Trained on rows whose actions lie in [-3, 3]."""
    return Augmenter.fit(arrays(scale=3.0), settings=[*TINY, "num_samples=600"], action_low=-3, action_high=3)


def test_importing_the_augmenter_brings_no_environment_logger_or_trainer():
    code = (
        "import sys; from o2o_diffusion import Augmenter; unwanted = {'gymnasium', 'mujoco', 'minari', 'wandb', "
        "'tensorboard', 'accelerate', 'diffusers', 'sklearn', 'matplotlib', 'stable_baselines3'}; "
        "own = ('training.loop', 'training.finetune', 'training.logger', 'environments'); "
        "unwanted |= {'o2o_diffusion.' + name for name in own}; "
        "print(sorted(unwanted & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_generated_rows_come_in_the_users_actions(fitted):
    inside = fitted.sample(500, unit_actions=True).actions
    assert inside.abs().max() <= 1
    assert 1.5 < fitted.sample(500).actions.abs().max() <= 3
    assert set(fitted.sample(500).sources.tolist()) == {Source.GENERATED_OFFLINE, Source.GENERATED_ONLINE}


def test_observed_rows_are_copied_and_kept_in_unit_actions():
    augmenter = Augmenter(TransitionSpec(2, 1), settings=TINY, action_low=[-3.0], action_high=1.0)
    observation = np.zeros(2)
    augmenter.observe(observation, [-1.0], 0.5, observation, False)
    observation += 7
    batch = {name: torch.from_numpy(array.astype(np.float64)) for name, array in arrays(5).items()}
    augmenter.observe(**batch | {"rewards": batch["rewards"][:, None]})  # as one column
    augmenter.observe(observation, [-1.0], 0.5, observation, 1, unit_actions=True)
    rows = augmenter.replay.online.all()
    assert len(rows) == 7 and rows.observations[0].tolist() == [0, 0]
    assert rows.actions[0] == 0 and rows.actions[-1] == -1 and rows.terminations[[0, -1]].tolist() == [0, 1]
    assert torch.allclose(rows.rewards[1:6], batch["rewards"].float())


def test_a_refresh_is_due_after_the_first_rows_and_then_by_steps():
    augmenter = Augmenter(TransitionSpec(2, 1), settings=TINY)
    rows, refreshed = arrays(), []
    for step in range(120):
        augmenter.observe(*(rows[name][step] for name in FIELDS))
        with torch.no_grad():  # as in a user's acting code
            refreshed += [step] * augmenter.maybe_refresh(step)
    assert refreshed == [39, 69, 99] and augmenter.refreshes == 3 and augmenter.num_generated == 200
    assert not augmenter.maybe_refresh(0)  # a second training counts anew, from here
    assert augmenter.maybe_refresh(30)


def test_sampling_never_runs_the_generator(fitted, monkeypatch):
    def run(*args, **kwargs):
        raise AssertionError("the generator ran")

    monkeypatch.setattr(fitted.generator, "sample", run)
    first = fitted.sample(1_000)
    pool = torch.cat([fitted.replay.pools[s].all().observations for s in (2, 3)])
    assert all(any(torch.equal(row, other) for other in pool) for row in first.observations[:20])
    assert len(first) == 1_000 and (first.sources >= 2).all()


def test_without_generated_rows_sampling_says_what_to_do():
    with pytest.raises(InputError, match=r"no generated rows yet: call refresh\(\).* once 40 rows .*\(0 so far\)"):
        Augmenter(TransitionSpec(2, 1), settings=TINY).sample(5)
    with pytest.raises(InputError, match="no rows to train the generator on"):
        Augmenter(TransitionSpec(2, 1), settings=TINY).refresh()
    assert Augmenter.fit(arrays(), generator="none").num_generated == 0


def test_rows_that_the_gate_refuses_are_not_used():
    """As in a run: a warning, an empty pool, real batches; the next refresh may be accepted."""
    augmenter = Augmenter(arrays(), settings=[*TINY, *STRICT])
    with pytest.warns(UserWarning, match=r"are refused: \d+% of the .* limit 0% more\); batches hold real rows"):
        verdict = augmenter.refresh()
    assert not verdict.accepted and verdict.rows == verdict.asked_rows == 200
    assert augmenter.num_generated == 0 and augmenter.refreshes == augmenter.refresher.refused == 1
    real, observation = Buffer(), np.zeros(2)
    for _ in range(30):
        real.add(observation, observation, np.zeros(1), 0.0, False, {})
    assert (augmenter.wrap(real, ratio=0.5).sample(20).observations == 0).all()
    with pytest.raises(InputError, match="no generated rows yet"):
        augmenter.sample(5)
    with pytest.warns(UserWarning, match="are refused"):
        assert not augmenter.redraw().accepted
    augmenter.generator.config = replace(augmenter.generator.config, gate=OPEN)
    assert augmenter.redraw().accepted and augmenter.num_generated == 200 and augmenter.refreshes == 1


def test_a_refresh_on_the_way_is_refused_too():
    augmenter = Augmenter(TransitionSpec(2, 1), settings=[*TINY, *STRICT])
    augmenter.observe(**arrays(100))
    with pytest.warns(UserWarning, match="are refused"):
        assert augmenter.maybe_refresh(100)
    assert augmenter.num_generated == 0 and not augmenter.maybe_refresh(129)  # the next one is due as usual


def test_restoring_continues_to_the_same_rows(tmp_path):
    first = Augmenter.fit(arrays(), online=arrays(50, seed=1), settings=TINY)
    first.observe(**arrays(60, seed=2))
    first.maybe_refresh(100)
    first.sample(7)
    save_checkpoint(tmp_path, 1, first.state_dict())
    torch.save(first.state_dict(), tmp_path / "state.pt")
    for state in (load_checkpoint(tmp_path), torch.load(tmp_path / "state.pt", weights_only=True)):
        second = Augmenter(arrays(), settings=TINY, seed=5)
        second.load_state_dict(state)
        assert not second.maybe_refresh(129) and len(second.replay.online) == 110
        assert torch.equal(first.sample(50).observations, second.sample(50).observations)
        first.load_state_dict(state)
    second.load_state_dict(state)
    for augmenter in (first, second):
        assert augmenter.maybe_refresh(130)
    assert torch.equal(first.sample(50).observations, second.sample(50).observations)
    with pytest.raises(InputError, match="300 offline rows, this one has 0"):
        Augmenter(TransitionSpec(2, 1), settings=TINY).load_state_dict(first.state_dict())


def test_a_saved_generator_is_drawn_from_at_once(fitted, tmp_path):
    fitted.save_pretrained(tmp_path / "saved")
    augmenter = Augmenter.from_pretrained(tmp_path / "saved", seed=3)
    assert augmenter.spec == TransitionSpec(2, 1) and augmenter.num_generated == 600
    assert len(augmenter.replay.offline) == 0 and augmenter.sample(50).actions.abs().max() <= 1
    assert len(Augmenter.from_pretrained(tmp_path / "saved", dataset=arrays()).replay.offline) == 300
    with pytest.raises(InputError, match="not a saved generator"):
        Augmenter.from_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"was made for .*observation_dim=2.*dataset has .*observation_dim=3"):
        wide = {name: np.c_[a, a[:, 0]] if "observations" in name else a for name, a in arrays().items()}
        Augmenter.from_pretrained(tmp_path / "saved", dataset=wide)


def test_the_report_is_a_verdict_with_reasons_and_numbers(fitted, monkeypatch):
    monkeypatch.setattr(residuals, "UPDATES", 20)
    report = fitted.report(rows=150)
    numbers = report.labels["offline"]
    assert set(report.labels) == {"offline", "online"} and numbers["outside_box"]["generated"] == 0
    assert numbers["auc"]["floor"] < 0.7 < numbers["auc"]["generated"]  # it has hardly been trained
    decision, *reasons = str(report).splitlines()
    assert decision == ("accepted" if report.verdict.accepted else "refused") and len(reasons) == 3
    assert reasons[0] == f"- {report.verdict.findings[0]}" and "limit" in reasons[0]


def test_a_generator_that_asks_a_policy_says_that_it_has_none(fitted):
    with pytest.raises(InputError, match="needs a policy"):
        fitted.agent.act(torch.zeros(1, 2))
    agent = object()
    assert Augmenter(arrays(), settings=TINY, agent=agent).agent is agent


def test_files_and_datasets_are_read(pendulum_table):
    augmenter = Augmenter(pendulum_table, settings=TINY, action_low=-2, action_high=2)
    assert len(augmenter.replay.offline) == 400 and augmenter.spec == TransitionSpec(3, 1)
    assert augmenter.replay.offline.fields["returns"].isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"terminations": None, "termination": np.zeros(300)}, "no 'terminations'; did you mean 'termination'"),
        ({"rewards": np.zeros(299)}, r"dataset: rewards have shape \[299\], expected \[300\]"),
        ({"actions": np.full((300, 1), 2.0)}, "row 0: actions are .2.0., expected between .*set action_low"),
        ({"rewards": np.array([0.0] * 299 + [np.nan])}, "row 299: rewards are nan, expected finite"),
        ({"terminations": np.full(300, 0.5)}, "terminations must be 1 where the task ended"),
        ({"observations": np.zeros(300)}, r"must be \[rows, width\]"),
        ({"observations": {"goal": 0}}, r"fields \['goal'\], expected vectors"),
    ],
)
def test_mistakes_in_data_are_one_clear_line(changes, message):
    data = {name: array for name, array in (arrays() | changes).items() if array is not None}
    with pytest.raises(InputError, match=message):
        Augmenter(data, settings=TINY)


def test_other_mistakes_are_one_clear_line(fitted):
    with pytest.raises(InputError, match="did you mean 'updates'"):
        Augmenter(arrays(), settings=["update=3"])
    with pytest.raises(InputError, match="unknown generator 'cfgd'; did you mean 'cfdg'"):
        Augmenter(arrays(), generator="cfgd")
    with pytest.raises(InputError, match=r"action_low \[1.0\] is not below action_high \[1.0\]"):
        Augmenter(arrays(), action_low=1)
    with pytest.raises(InputError, match="dataset is a int, expected"):
        Augmenter(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=r"observe: actions have shape \[2\], expected \[1, 1\]"):
        fitted.observe(np.zeros(2), np.zeros(2), 0.0, np.zeros(2), False)


def test_a_single_file_loop_needs_fewer_than_five_lines():
    lines = Path("examples/cleanrl_style.py").read_text().split('"""', 2)[2].splitlines()
    assert [line for line in lines if "augmenter" in line.lower()] == [line for line in lines if "# <-" in line]
    assert sum("# <-" in line for line in lines) < 5


class Recorder(gym.Wrapper):
    """Pendulum that knows what it showed last, and refuses any action that `policy` does not take there."""

    def __init__(self, policy):
        super().__init__(gym.make("Pendulum-v1"))
        self.policy, self.transitions = policy, []

    def reset(self, **options):
        self.shown, info = self.env.reset(**options)
        return self.shown.copy(), info

    def step(self, action):
        assert np.array_equal(action, self.policy(self.shown)), "an action that is not of the last observation"
        following, reward, *ended, info = self.env.step(action)
        self.transitions.append((self.shown, action.copy(), following, ended[0], np.float32(reward)))
        self.shown = following
        return following.copy(), reward, *ended, info


def policy(observation: np.ndarray) -> np.ndarray:
    """[1] action in [-2, 2], another for every observation."""
    return np.tanh(observation @ np.array([[0.3], [0.7], [0.2]], dtype=np.float32)) * 2


def interact(environment: Recorder, buffer, augmenter: Augmenter, num_steps: int, *, faulty: bool = False) -> list:
    """The usual loop; returns the batches. A `faulty` one overwrites its observation by a generated one."""
    batches, (observation, _) = [], environment.reset(seed=0)
    for step in range(num_steps):
        action = policy(observation)
        following, reward, terminated, truncated, info = environment.step(action)
        buffer.add(observation, following, action, reward, terminated, info)
        observation = environment.reset()[0] if truncated else following
        augmenter.maybe_refresh(step)
        if step % 10 == 9:
            batches.append(buffer.sample(20))
            if faulty and augmenter.num_generated:
                observation = batches[-1].observations[-1].numpy()
    return batches


def test_the_environment_gets_actions_of_its_own_observations_only():
    """10,000 steps with refreshes on the way; whatever is stored as real is what the environment did, bit for bit."""
    settings = [*TINY, "first_refresh=1_000", "refresh_interval=4_000", "num_samples=2_000"]
    augmenter = Augmenter(TransitionSpec(3, 1), settings=settings, action_low=-2, action_high=2)
    environment, real = Recorder(policy), Buffer()
    buffer = augmenter.wrap(real, ratio=0.5)
    batches = interact(environment, buffer, augmenter, 10_000)
    assert augmenter.refreshes == 3 and len(real) == len(buffer) == 10_000
    for stored, happened in zip(real.rows, environment.transitions, strict=True):
        assert all(np.array_equal(np.squeeze(a), np.squeeze(b)) for a, b in zip(stored[:4], happened[:4], strict=True))
    seen = torch.tensor(np.array([row[0] for row in environment.transitions]))
    assert torch.equal(augmenter.replay.online.all().observations, seen)
    known = {row.tobytes() for row in seen.numpy()}
    generated = torch.cat([batch.observations[10:] for batch in batches[-800:]])
    assert not known & {row.tobytes() for row in generated.numpy()}  # the check above could not mistake one for real
    assert known >= {row.tobytes() for batch in batches[-800:] for row in batch.observations[:10].numpy()}


def test_that_check_catches_a_loop_that_acts_on_a_generated_observation():
    augmenter = Augmenter(TransitionSpec(3, 1), settings=TINY, action_low=-2, action_high=2)
    with pytest.raises(AssertionError, match="not of the last observation"):
        interact(Recorder(policy), augmenter.wrap(Buffer()), augmenter, 200, faulty=True)
