"""What the control plane knows of device memory: sources, places, needs and priors."""
