"""The Triton pool as the control plane sees it: catalog, health and the embedded Triton."""
