"""The benchmark of device memory on a real Triton, in its smallest run."""

from __future__ import annotations

import pytest

from benchmarks import device_memory_real
from benchmarks.options import Options


@pytest.mark.slow
def test_a_real_triton_gives_every_figure(needs_triton: None) -> None:
    figures = {f.figure: f for f in device_memory_real.run(Options(rounds=1, short=True))}
    assert list(figures) == [
        "device_memory_real_client_errors",
        "device_memory_real_prediction_error",
        "device_memory_nvml_calls",
        "device_memory_real_ratio_to_safe_cap",
        "device_memory_shrink_at_rest",
        "device_memory_shrink_moving",
    ]
    for name, figure in figures.items():
        assert figure.verified, name
    errors = figures["device_memory_real_client_errors"]
    assert errors.reaches(errors.must)
