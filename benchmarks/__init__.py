"""One script a question; results are JSON lines. They run the checkout's Triton unless told."""

import os
from pathlib import Path

_TRITON = Path(__file__).resolve().parents[1] / ".tools" / "triton"
os.environ.setdefault("INFERSCHED_TRITON_DIR", str(_TRITON))
