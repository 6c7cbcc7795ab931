"""TLS: who may read and who may speak."""
