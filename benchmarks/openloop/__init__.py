"""A load generator on the scheduler's own client transport (csrc/loadgen), open and closed loop."""
