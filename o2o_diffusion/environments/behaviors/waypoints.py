"""Waypoint controller for PointMaze: breadth-first search over the maze's cells and proportional-derivative control."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from o2o_diffusion.errors import InputError

Cell = tuple[int, int]

STIFFNESS, DAMPING = 10.0, 1.0
"""Action per m of distance to the waypoint and per m/s of velocity; actions are in [-1, 1]."""


class Waypoints:
    """Steers to the center of the next cell on a shortest path, or to the goal itself once in its cell."""

    def __init__(self, environment: gym.Env):
        self.maze: Any = getattr(environment.unwrapped, "maze", None)
        if self.maze is None or environment.action_space.shape != (2,):
            name = environment.spec.id if environment.spec else environment
            raise InputError(f"the behavior 'waypoints' drives PointMaze environments only, not {name}")
        self.steps: dict[Cell, dict[Cell, Cell]] = {}

    def __call__(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """[2] action in [-1, 1] for a raw observation of the environment."""
        position, velocity = observation["observation"][:2], observation["observation"][2:]
        goal = observation["desired_goal"]
        here, there = self._cell(position), self._cell(goal)
        if there not in self.steps:
            self.steps[there] = self._search(there)
        following = self.steps[there].get(here, there)
        waypoint = goal if here == there else self.maze.cell_rowcol_to_xy(np.array(following))
        return np.clip(STIFFNESS * (waypoint - position) - DAMPING * velocity, -1, 1)

    def _cell(self, position: np.ndarray) -> Cell:
        row, column = self.maze.cell_xy_to_rowcol(position)
        return int(row), int(column)

    def _search(self, goal: Cell) -> dict[Cell, Cell]:
        """For every reachable cell, the next cell on a shortest path to `goal`."""
        following, queue = {goal: goal}, deque([goal])
        while queue:
            cell = queue.popleft()
            for row, column in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                neighbor = cell[0] + row, cell[1] + column
                if neighbor not in following and self._is_free(neighbor):
                    following[neighbor] = cell
                    queue.append(neighbor)
        return following

    def _is_free(self, cell: Cell) -> bool:
        inside = 0 <= cell[0] < self.maze.map_length and 0 <= cell[1] < self.maze.map_width
        return inside and self.maze.maze_map[cell[0]][cell[1]] != 1
