"""A digit classifier through the scheduler and straight to Triton."""
