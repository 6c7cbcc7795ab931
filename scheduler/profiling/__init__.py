"""Measures how long batches of a model take on a Triton, and draws it."""
