"""Learners in the plain eager style of public PyTorch code, to compare speeds with.

One module per critic, one backward pass and one default Adam per network, targets averaged in a loop, losses logged
with `.item()`, default matrix products. They are not optimized, and have the same losses as this package's learners.
"""
