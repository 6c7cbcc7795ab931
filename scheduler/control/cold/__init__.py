"""The RPCs of GRPCInferenceService that carry no tensors."""
