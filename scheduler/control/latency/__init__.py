"""The control plane's part in learned latencies."""
