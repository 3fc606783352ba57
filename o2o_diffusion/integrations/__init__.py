"""The generator inside other people's reinforcement learning code: one module for each library, which it alone imports.

`arrays` checks rows on their way in, `buffers` mixes generated rows into batches on their way out.
"""
