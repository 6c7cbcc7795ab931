# What the engine has learned of a placement's latency, as Python numbers. Included by gateway.pyx.


cdef tuple learned_latency(uint32_t backend, const LatencyStatus& status):
    """(backend, known, observations, alpha_ns, beta_ns, margin, error_mean, beyond_margin,
    rows_target, rate_per_s, sizes, ignored); sizes are (rows, observations, expected_ns), ignored
    is by kind.
    """
    cdef size_t i
    sizes = [
        (status.sizes[i].rows, status.sizes[i].batches, status.sizes[i].backend_ns)
        for i in range(status.sizes.size())
    ]
    return (
        backend, status.known, status.observations, status.alpha_ns, status.beta_ns, status.margin,
        status.error_mean, status.beyond_margin, status.rows_target, status.rate_per_s, sizes,
        status.ignored,
    )


cdef list learned_latencies(CppGateway* core, uint32_t model):
    cdef uint32_t backend
    return [
        learned_latency(backend, core.scheduler().latency_status(model, backend))
        for backend in core.placements(model)
    ]
