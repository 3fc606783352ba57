from pathlib import Path

import numpy as np
import pytest

from o2o_diffusion.data.datasets import load_dataset
from o2o_diffusion.diffusion.sampling import Sampling
from o2o_diffusion.environments.recording import Recording, record
from o2o_diffusion.errors import InputError
from o2o_diffusion.generators.cfdg import CFDG
from o2o_diffusion.generators.pretrained import checksum
from o2o_diffusion.integrations.minari import augment
from o2o_diffusion.schedule import OPEN

TINY = ["updates=10", "batch_size=32", "width=16", "depth=1", "embedding_dim=8", "sampling.num_steps=3", "gate.rows=0"]
STRICT = ["gate.rows=50", "gate.outside_range=0", "gate.at_limits=0"]


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch) -> Path:
    """Minari's store, with a recorded Pendulum of three episodes, whose actions lie between -2 and 2."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    record(Recording("o2o/pendulum-v0", "Pendulum-v1", num_steps=150, max_episode_steps=50), progress=False)
    return tmp_path / "store"


def test_generated_rows_follow_the_real_episodes(store):
    import minari

    folder = augment("o2o/pendulum-v0", "my/pendulum-augmented-v0", num_samples=20, settings=TINY)
    assert folder == store / "my" / "pendulum-augmented-v0"
    real, both = (minari.load_dataset(name) for name in ("o2o/pendulum-v0", "my/pendulum-augmented-v0"))
    assert both.total_episodes == real.total_episodes + 20 and both.total_steps == real.total_steps + 20
    for one, two in zip(real.iterate_episodes(), both.iterate_episodes(range(real.total_episodes)), strict=True):
        for name in ("observations", "actions", "rewards", "terminations", "truncations"):
            assert np.array_equal(getattr(one, name), getattr(two, name))
    assert both.observation_space == real.observation_space and both.action_space == real.action_space
    assert both.storage.metadata["generated_episodes"] == [real.total_episodes, real.total_episodes + 20]
    assert both.storage.metadata["source_datasets"] == ["o2o/pendulum-v0"]
    loaded = load_dataset("my/pendulum-augmented-v0")
    assert loaded.environment == load_dataset("o2o/pendulum-v0").environment
    assert max(np.abs(episode.actions).max() for episode in loaded.episodes) <= 1


def test_rows_that_the_gate_refuses_are_written_with_a_warning():
    with pytest.warns(UserWarning, match=r"are refused: .*limit 0% more\); they are written anyway"):
        augment("o2o/pendulum-v0", "my/bad-v0", num_samples=200, settings=[*TINY, *STRICT])
    assert load_dataset("my/bad-v0").num_transitions == load_dataset("o2o/pendulum-v0").num_transitions + 200


def test_a_saved_generator_is_drawn_from_as_it_is(tmp_path):
    data = load_dataset("o2o/pendulum-v0")
    generator = CFDG(
        CFDG.Config(width=16, depth=1, embedding_dim=8, sampling=Sampling(num_steps=3), gate=OPEN), data.spec, seed=0
    )
    generator.save_pretrained(tmp_path / "saved")
    augment("o2o/pendulum-v0", "my/rows-v0", generator=str(tmp_path / "saved"), num_samples=7, keep_real=False)
    import minari

    dataset = minari.load_dataset("my/rows-v0")
    assert dataset.total_episodes == dataset.total_steps == 7
    assert dataset.storage.metadata["generator_sha256"] == checksum(tmp_path / "saved")


def test_mistakes_are_told_before_any_work(store, pendulum_table, monkeypatch):
    monkeypatch.setattr(CFDG, "update", lambda *_: pytest.fail("trained"))
    for arguments, message in (
        (("o2o/pendulum-v0", "o2o/pendulum-v0"), "never overwritten"),
        (("o2o/pendulum-v0", "x/y"), "nor a Minari id"),
        (("o2o/pendulam-v0", "my/rows-v0"), "did you mean 'o2o/pendulum-v0'"),
        ((pendulum_table, "my/rows-v0"), "is a table, expected a Minari dataset"),
    ):
        with pytest.raises(InputError, match=message):
            augment(*arguments)
    with pytest.raises(InputError, match="unknown generator 'cfgd'; did you mean 'cfdg'"):
        augment("o2o/pendulum-v0", "my/rows-v0", generator="cfgd")
    with pytest.raises(InputError, match="neither a folder nor an id on the hub"):
        augment("o2o/pendulum-v0", "my/rows-v0", generator="no/such/folder")
    assert [path.name for path in store.iterdir()] == ["o2o"]
