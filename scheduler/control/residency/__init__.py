"""Models on demand: loaded when they are wanted, unloaded where room is needed."""
