"""Saving and restoring a component by its attributes."""

from dataclasses import asdict, fields, is_dataclass
from typing import Any

from torch import Tensor


class Stateful:
    """Saves every attribute with a `state_dict`, and the plain values named in `state_fields`.

    Plain values are numbers, strings, None, tensors, lists and dicts of these, and dataclasses of such values, restored
    as the attribute's current class; they share no memory with the saved state.
    """

    state_fields: tuple[str, ...] = ()

    def state_dict(self) -> dict[str, Any]:
        """The state of each part and field, by attribute name."""
        states = {name: part.state_dict() for name, part in self._parts()}
        return states | {name: _copied(getattr(self, name)) for name in self.state_fields}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state`; raises ValueError if it was saved by a component with different parts."""
        expected = {name for name, _ in self._parts()} | set(self.state_fields)
        if expected != set(state):
            raise ValueError(f"state of {type(self).__name__} has parts {sorted(state)}, expected {sorted(expected)}")
        for name, part in self._parts():
            part.load_state_dict(state[name])
        for name in self.state_fields:
            setattr(self, name, _restored(getattr(self, name), _copied(state[name])))

    def _parts(self) -> list[tuple[str, Any]]:
        return [(name, part) for name, part in vars(self).items() if hasattr(part, "state_dict")]


def _copied(value: Any) -> Any:
    """Copy `value` to plain data that shares no memory with it."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, (list, tuple)) else value


def _restored(present: Any, saved: Any) -> Any:
    """Convert `saved` to the class of `present`."""
    if not is_dataclass(present) or isinstance(present, type):
        return saved
    return type(present)(**{f.name: _restored(getattr(present, f.name), saved[f.name]) for f in fields(present)})
