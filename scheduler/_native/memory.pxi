# Device memory: readings as the engine takes them, and what it has learned, as Python numbers.
# Included by gateway.pyx.


def says_out_of_memory(int code, str text):
    """Whether a backend's error, by its gRPC status code, says that its device ran out of memory.
    """
    return c_says_out_of_memory(Status.error(<StatusCode> code, text.encode()))


cdef DeviceMemory device_memory(message) except *:
    cdef DeviceMemory memory
    memory.known = message.known
    memory.fixed = message.fixed
    memory.free_bytes = message.free_bytes
    memory.total_bytes = message.total_bytes
    memory.headroom_bytes = message.headroom_bytes
    memory.measured_at = message.measured_at_ns
    memory.own_bytes = message.own_bytes
    memory.own_measured_at = message.own_measured_at_ns
    memory.loads = message.loads
    return memory


cdef list learned_needs(CppGateway* core, uint32_t model):
    """The fields of a MemorySnapshot, by device."""
    cdef uint32_t device
    cdef MemoryStatus status
    needs = []
    for device in core.devices(model):
        status = core.scheduler().memory_status(model, device)
        needs.append({
            "device_index": device,
            "known": status.known,
            "confirmed": status.confirmed,
            "base_bytes": status.base_bytes,
            "bytes_per_row": status.bytes_per_row,
            "samples": status.samples,
            "error": status.error,
            "rows_high": status.rows_high,
            "rows_limit": status.rows_limit,
            "rows_cap": status.rows_cap,
            "added_bytes": status.added_bytes,
            "out_of_memory": status.out_of_memory,
        })
    return needs


cdef list device_states(CppGateway* core):
    """(index, known, free, total, headroom, measured_at_ns, fixed, reserved, own,
    own_measured_at_ns) of the devices with readings.
    """
    cdef uint32_t index
    cdef DeviceStatus status
    states = []
    for index in range(kDevicesMax):
        status = core.scheduler().device_status(index)
        if status.seen:
            states.append((
                index, status.memory.known, status.memory.free_bytes, status.memory.total_bytes,
                status.memory.headroom_bytes, status.memory.measured_at,
                status.memory.fixed, status.reserved_bytes, status.memory.own_bytes,
                status.memory.own_measured_at,
            ))
    return states
