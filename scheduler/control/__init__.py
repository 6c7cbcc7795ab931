"""The control plane process: catalog, steering, cold RPCs, Control service, metrics."""
