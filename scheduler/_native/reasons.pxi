# The names of Outcome and Reason (csrc/engine/counters.h), in their order: labels of the metrics.
OUTCOMES = ("completed", "refused", "expired", "cancelled", "failed")
REASONS = (
    "none",
    "invalid",
    "unknown_model",
    "queue_full",
    "queue_age",
    "host_memory",
    "deadline_infeasible",
    "expired_in_queue",
    "expired_in_flight",
    "client_cancelled",
    "draining",
    "no_backend",
    "backend_error",
    "sequence_lost",
    "unloading",
    "predicted_late",
    "priority_shed",
    "tenant_quota",
    "device_memory",
    "model_share",
)
