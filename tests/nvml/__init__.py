"""A libnvidia-ml.so.1 for tests: NVML's ABI over a file of figures. See figures.py."""
