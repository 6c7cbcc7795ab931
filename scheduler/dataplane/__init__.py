"""The hot process: one thread, one uvloop loop, and the compiled gateway."""
