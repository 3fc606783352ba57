"""Each fault in the data is one line that names episode, step and field."""

import gymnasium as gym
import numpy as np
import pytest

from o2o_diffusion.data.datasets import Dataset
from o2o_diffusion.data.scores import reference_scores
from o2o_diffusion.data.spaces import ActionBounds
from o2o_diffusion.data.validation import check_flags, checked_episode
from o2o_diffusion.environments.environment import make_environment
from o2o_diffusion.environments.tasks import check_environment
from o2o_diffusion.errors import InputError
from o2o_diffusion.types import EnvironmentSpec, TransitionSpec

SPEC = TransitionSpec(3, 2)


def episode(**changes):
    fields = {"observations": np.zeros((5, 3)), "actions": np.zeros((4, 2)), "rewards": np.zeros(4)} | changes
    return checked_episode("data: episode 7", **fields, terminated=False, spec=SPEC)


@pytest.mark.parametrize("field", ["observations", "actions", "rewards"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_numbers_must_be_finite(field, value):
    array = np.zeros({"observations": (5, 3), "actions": (4, 2), "rewards": (4,)}[field])
    array[2, ...] = value
    with pytest.raises(InputError, match=f"data: episode 7, step 2: .*{field} is (nan|inf)"):
        episode(**{field: array})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"observations": np.zeros((4, 3))}, r"observations have shape \[4, 3\], expected \[5, 3\]"),
        ({"observations": np.zeros((5, 2))}, r"observations have shape \[5, 2\], expected \[5, 3\]"),
        ({"actions": np.zeros((4, 1))}, r"actions have shape \[4, 1\], expected \[4, 2\]"),
        ({"actions": np.zeros(4, int)}, r"actions have shape \[4\], expected \[4, 2\]"),
        ({"rewards": np.zeros((4, 1))}, r"rewards have shape \[4, 1\], expected \[4\]"),
        ({"rewards": np.zeros(0)}, "is empty"),
        ({"rewards": np.array(list("abcd"))}, "rewards are <U1, expected real numbers"),
        ({"actions": np.full((4, 2), 1.01)}, "step 0: entry 0 of actions is 1.01, expected in"),
    ],
)
def test_malformed_episodes_are_refused(changes, message):
    with pytest.raises(InputError, match=f"data: episode 7.*{message}"):
        episode(**changes)


def test_actions_outside_by_rounding_are_clipped():
    assert episode(actions=np.full((4, 2), 1.0005)).actions.max() == 1


def test_flags_are_set_at_the_end_only():
    check_flags("data: episode 7", 3, terminations=np.array([False, False, True]))
    with pytest.raises(InputError, match="episode 7, step 1: terminations is set before"):
        check_flags("data: episode 7", 3, terminations=np.array([False, True, False]))
    with pytest.raises(InputError, match=r"truncations have shape \[2\], expected \[3\]"):
        check_flags("data: episode 7", 3, truncations=np.array([False, True]))


@pytest.mark.parametrize(
    "space", [gym.spaces.Discrete(3), gym.spaces.Box(0, np.inf, (2,)), gym.spaces.Box(0, 1, (2, 2))]
)
def test_only_bounded_vectors_are_actions(space):
    with pytest.raises(InputError, match="data: actions must be a bounded vector"):
        ActionBounds.of(space, "data")


def test_a_dataset_of_another_environment_is_refused_with_both_shapes():
    pendulum = make_environment(EnvironmentSpec("Pendulum-v1"))
    check_environment(Dataset("same", (), TransitionSpec(3, 1)), pendulum)
    with pytest.raises(InputError, match=r"\[11\] and actions \[3\].*Pendulum-v1.*\[3\] and actions \[1\]"):
        check_environment(Dataset("hopper", (), TransitionSpec(11, 3)), pendulum)
    unit = ActionBounds(-np.ones(1, np.float32), np.ones(1, np.float32))
    with pytest.raises(InputError, match=r"actions between \[-1.0\] and \[1.0\].*\[-2.0\] to \[2.0\]"):
        check_environment(Dataset("bounds", (), TransitionSpec(3, 1), action_bounds=unit), pendulum)


def test_scores_come_from_the_metadata_else_from_the_table():
    own = reference_scores("Hopper-v5", {"ref_min_score": 10.0, "ref_max_score": 20.0})
    table = reference_scores("Hopper-v5")
    assert own and own.source == "Minari metadata" and own.normalize(np.array([10.0, 15.0])).tolist() == [0, 50]
    assert table and table.source == "D4RL table, v5 physics: approximate"
    assert table.normalize(np.array(3234.3)) == pytest.approx(100) and table.normalize(np.array(-20.272305)) == 0
    assert reference_scores("PointMaze_UMaze-v3") is None and reference_scores(None) is None
