"""One script a question; results are JSON lines."""
