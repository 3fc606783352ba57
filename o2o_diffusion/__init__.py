"""Offline-to-online reinforcement learning with guided diffusion models of transitions."""

__version__ = "0.1.0"
