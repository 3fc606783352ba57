"""Policies for recording data, ready to use without training."""
