"""scheduler.v1.Apply as the structs of csrc/gateway: the steering interface read once, by value."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from libcpp.memory cimport make_shared, shared_ptr

from scheduler._native.gateway cimport *

# A request of more batches than this is refused: its answer is put together in one step.
cdef enum: kRequestBatchesMax = 1024


cdef inline fill_limits(Limits* limits, message):
    if message.message_bytes_max:
        limits.message_bytes_max = message.message_bytes_max
    if message.host_bytes_max:
        limits.host_bytes_max = message.host_bytes_max
    if message.connections_max:
        limits.connections_max = message.connections_max
    if message.streams_per_connection_max:
        limits.streams_per_connection_max = message.streams_per_connection_max
    for name in message.forward_metadata:
        limits.forward_metadata.push_back(name.encode())
    limits.response_compression = <Compression><int>message.response_compression
    limits.tenant_key = message.tenant_metadata_key.lower().encode()
    cdef Tenant tenant
    for wanted in message.tenants:
        tenant.name = wanted.name.encode()
        tenant.weight = wanted.weight
        limits.tenants.push_back(tenant)


cdef inline BackendConfig backend_config(message, shared_memory_key):
    cdef BackendConfig config
    config.index = message.index
    config.address = message.address.encode()
    config.connections = max(message.connections, 1)
    config.state = <BackendState><int>message.state
    config.compression = <Compression><int>message.compression
    config.encrypted = message.HasField("tls")
    # What a former data plane had registered is not this one's memory.
    if shared_memory_key and message.shared_memory_key == shared_memory_key:
        config.shared_region = message.shared_memory_region.encode()
    return config


cdef inline SharedMemoryRegion shared_memory_region(message):
    cdef SharedMemoryRegion region
    region.name = message.name.encode()
    region.backends = list(message.backend_indices)
    return region


cdef inline LoadableModel loadable_model(message):
    cdef LoadableModel model
    model.name = message.name.encode()
    model.load_ns = max(message.load_ns, 0)
    model.ready_at = max(message.ready_at_ns, 0)
    model.error = message.error.encode()
    model.need_bytes = message.need_bytes
    model.free_bytes = message.free_bytes
    return model


cdef inline Padding padding_schema(message):
    cdef Padding padding
    padding.axis = message.axis
    padding.buckets = sorted(message.buckets)
    padding.value = message.value
    padding.mask_input = message.mask_input.encode()
    padding.length_input = message.length_input.encode()
    return padding


cdef inline TensorSchema tensor_schema(message):
    cdef TensorSchema tensor
    tensor.name = message.name.encode()
    tensor.data_type = parse_data_type(message.datatype.encode())
    tensor.dims = list(message.dims)
    tensor.optional = message.optional
    tensor.shape_tensor = message.shape_tensor
    tensor.ragged = message.ragged
    tensor.padding = padding_schema(message.padding)
    tensor.trim_to = message.trim_to.encode()
    tensor.trim_axis = message.trim_axis
    return tensor


cdef inline shared_ptr[TritonBatching] triton_batching(message):
    cdef shared_ptr[TritonBatching] batching = make_shared[TritonBatching]()
    cdef TritonQueuePolicy level
    batching.get().dynamic = message.dynamic
    batching.get().preferred_rows = list(message.preferred_rows)
    batching.get().queue_delay_max_ns = message.queue_delay_max_ns
    batching.get().preserve_ordering = message.preserve_ordering
    batching.get().default_level = max(message.default_level, 1)
    for wanted in message.levels:
        level.delay_timed_out = wanted.delay_timed_out
        level.timeout_ns = wanted.timeout_ns
        level.timeout_override = wanted.timeout_override
        level.requests_max = wanted.requests_max
        batching.get().levels.push_back(level)
    if batching.get().levels.empty():
        batching.get().levels.resize(1)
    return batching


cdef inline ModelPolicy model_policy(batching, max_batch_size):
    cdef ModelPolicy policy
    policy.in_use = True
    policy.merge = batching.merge
    policy.rows_max = batching.rows_max or max(max_batch_size, 1)
    policy.preferred_rows = sorted(batching.preferred_rows)
    policy.mandatory_rows = sorted(batching.mandatory_rows)
    policy.queue_delay_max_ns = batching.queue_delay_max_ns
    policy.priority_levels = max(batching.priority_levels, 1)
    policy.default_priority = max(batching.default_priority, 1)
    policy.slo_ns = batching.slo_ns
    cdef LevelPolicy level
    for wanted in batching.levels:
        level.slo_ns = wanted.slo_ns
        level.best_effort = wanted.best_effort
        level.attainment = wanted.attainment
        policy.levels.push_back(level)
    policy.load_aware = not batching.fixed_delay
    policy.attainment = batching.attainment or policy.attainment
    policy.value = batching.value
    policy.aging_ns = batching.aging_ns
    policy.queue_requests_max = batching.queue_requests_max
    policy.queue_bytes_max = batching.queue_bytes_max
    policy.queue_age_max_ns = batching.queue_age_max_ns
    policy.staged_batches_max = batching.staged_batches_max
    policy.idempotent = batching.idempotent
    policy.cancellable = batching.cancellable
    policy.direct_max = batching.direct_max
    policy.sequence_idle_ns = batching.sequence_idle_ns
    policy.admitting = not batching.refusing
    policy.hold_requests = batching.hold_requests
    if batching.HasField("triton"):
        policy.triton = triton_batching(batching.triton)
    return policy


cdef inline MemoryPrior memory_prior(placement):
    cdef MemoryPrior prior
    prior.backend = placement.backend_index
    prior.base_bytes = placement.memory_prior.base_bytes
    prior.bytes_per_row = placement.memory_prior.bytes_per_row
    prior.rows_high = placement.memory_prior.rows_high
    prior.fixed = placement.memory_prior.fixed
    return prior


cdef inline ModelConfig model_config(message):
    cdef ModelConfig config
    cdef Placement placement
    cdef LatencyPrior prior
    config.index = message.index
    config.is_default_version = message.is_default_version
    config.schema.name = message.name.encode()
    config.schema.version = message.version.encode()
    config.schema.max_batch_size = message.max_batch_size
    config.schema.merge = message.batching.merge
    config.schema.decoupled = message.decoupled
    config.schema.sequence = message.sequence
    for tensor in message.inputs:
        config.schema.inputs.push_back(tensor_schema(tensor))
    for tensor in message.outputs:
        config.schema.outputs.push_back(tensor_schema(tensor))
    config.policy = model_policy(message.batching, message.max_batch_size)
    for name in message.batching.key_headers:
        config.key_headers.push_back(name.lower().encode())
    # What cannot be merged cannot be split either: its size is checked as Triton does.
    splits = message.batching.merge and not message.batching.HasField("triton")
    config.schema.rows_max = message.max_batch_size
    if splits and message.max_batch_size > 0:
        largest = max(message.batching.mandatory_rows, default=config.policy.rows_max)
        config.schema.rows_max = max(kRequestBatchesMax * largest, message.max_batch_size)
    for wanted in message.placements:
        placement.backend = wanted.backend_index
        placement.instances = max(wanted.instances, 1)
        placement.ready = wanted.ready
        placement.executor_group = wanted.executor_group or kOwnExecutors
        placement.devices = list(wanted.device_indices)
        placement.device_instances = wanted.device_instances
        config.placements.push_back(placement)
        if wanted.HasField("memory_prior"):
            config.memory_priors.push_back(memory_prior(wanted))
        prior.backend = wanted.backend_index
        for size in wanted.latency_prior:
            if size.batches:
                prior.rows = size.rows
                prior.batches = size.batches
                prior.mean_ns = size.backend_ns // size.batches
                config.priors.push_back(prior)
    return config
