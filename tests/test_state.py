from dataclasses import dataclass, field

import pytest
import torch

from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.schedule import Cadence, Phase
from o2o_diffusion.state import Stateful


@dataclass
class Inner:
    count: int = 0
    values: list[float] = field(default_factory=list)


@dataclass
class Progress:
    inner: Inner = field(default_factory=Inner)
    name: str | None = None
    table: torch.Tensor = field(default_factory=lambda: torch.zeros(2))


class Component(Stateful):
    state_fields = ("progress", "carry", "tensors", "best")

    def __init__(self, seed: int = 0):
        self.rng, self.network = ShardedRng(seed), torch.nn.Linear(2, 1)
        self.progress, self.carry, self.best = Progress(), [0.0, 0.0], None
        self.tensors: dict[str, torch.Tensor] = {}
        self.cache = "not saved"


class Child(Component):
    state_fields = (*Component.state_fields, "steps")

    def __init__(self, seed: int = 0):
        super().__init__(seed)
        self.steps = 0


def changed() -> Component:
    component = Component(seed=1)
    component.progress = Progress(Inner(3, [0.5, 1.5]), "half", torch.ones(2))
    component.carry, component.best = [0.25, -0.25], 7.0
    component.tensors = {"priorities": torch.arange(3.0)}
    component.rng.normal(5)
    return component


def test_parts_and_fields_are_restored():
    saved, restored = changed(), Component()
    restored.load_state_dict(saved.state_dict())
    assert (restored.carry, restored.best, restored.cache) == ([0.25, -0.25], 7.0, "not saved")
    assert torch.equal(restored.tensors["priorities"], torch.arange(3.0))
    assert torch.equal(restored.network.weight, saved.network.weight)
    assert torch.equal(restored.rng.normal(4), saved.rng.normal(4))


def test_nested_dataclasses_are_saved_as_plain_data_and_restored_as_their_classes():
    state, restored = changed().state_dict(), Component()
    assert set(state) == {"rng", "network", "progress", "carry", "tensors", "best"}
    assert type(state["progress"]) is dict and state["progress"]["inner"] == {"count": 3, "values": [0.5, 1.5]}
    restored.load_state_dict(state)
    assert type(restored.progress) is Progress and restored.progress.inner == Inner(3, [0.5, 1.5])
    assert restored.progress.name == "half" and torch.equal(restored.progress.table, torch.ones(2))


def test_a_frozen_dataclass_is_restored_with_its_parts():
    class Learner(Stateful):
        state_fields = ("phase",)

        def __init__(self, phase: Phase):
            self.phase = phase

    phase, other = Phase("online", env_steps=5, cadence=Cadence(2.0, every=0)), Learner(Phase("offline"))
    other.load_state_dict(Learner(phase).state_dict())
    assert other.phase == phase and other.phase.cadence.due(7, episode_length=7) == 14


def test_the_saved_state_goes_through_a_file_of_plain_data(tmp_path):
    torch.save(changed().state_dict(), tmp_path / "state.pt")
    restored = Component()
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert restored.progress.inner == Inner(3, [0.5, 1.5]) and restored.carry == [0.25, -0.25]


def test_fields_share_nothing_with_the_saved_state():
    component = changed()
    state = component.state_dict()

    def change(of: Component) -> None:
        of.tensors["priorities"].add_(1)
        of.progress.table.add_(1)
        of.progress.inner.values.append(2.5)
        of.carry[0] = 9.0

    change(component)
    restored, again = Component(), Component()
    restored.load_state_dict(state)
    change(restored)
    again.load_state_dict(state)
    assert torch.equal(again.tensors["priorities"], torch.arange(3.0)) and again.carry == [0.25, -0.25]
    assert torch.equal(again.progress.table, torch.ones(2)) and again.progress.inner.values == [0.5, 1.5]


@pytest.mark.parametrize(
    ("saved", "own", "message"),
    [
        (Component(), Child(), r"state of Child has parts \['best', .*\], expected \[.*'steps'"),
        (Child(), Component(), r"state of Component has parts \[.*'steps', 'tensors'\], expected \["),
    ],
)
def test_other_parts_are_refused_and_nothing_changes(saved, own, message):
    saved.carry = [1.0, 1.0]
    with pytest.raises(ValueError, match=message):
        own.load_state_dict(saved.state_dict())
    assert own.carry == [0.0, 0.0]
