"""One script a question; results are JSON lines. They run the checkout's Triton unless told."""

import os

from benchmarks.results import ROOT

os.environ.setdefault("INFERSCHED_TRITON_DIR", str(ROOT / ".tools" / "triton"))
