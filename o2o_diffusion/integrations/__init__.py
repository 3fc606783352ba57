"""Generators as plugins for other reinforcement learning libraries; each library has a module that alone imports it.

`arrays` validates rows from users, `buffers` mixes generated rows into batches.
"""
