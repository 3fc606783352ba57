"""State that saves itself."""


class Stateful:
    """Saves and restores every attribute that has a state of its own, and the plain numbers named in `counters`."""

    counters: tuple[str, ...] = ()

    def state_dict(self) -> dict:
        """States of networks, optimisers, noise and counters, by attribute name."""
        states = {name: part.state_dict() for name, part in self._parts()}
        return states | {name: getattr(self, name) for name in self.counters}

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state`; raises ValueError when it was made by a component with other parts."""
        expected = {name for name, _ in self._parts()} | set(self.counters)
        if expected != set(state):
            raise ValueError(f"state of {type(self).__name__} has parts {sorted(state)}, expected {sorted(expected)}")
        for name, part in self._parts():
            part.load_state_dict(state[name])
        for name in self.counters:
            setattr(self, name, state[name])

    def _parts(self):
        return [(name, part) for name, part in vars(self).items() if hasattr(part, "state_dict")]
