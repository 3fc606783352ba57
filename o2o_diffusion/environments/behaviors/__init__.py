"""Policies that record data: no training is needed to run them."""
