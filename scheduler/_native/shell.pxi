"""What the protocols around uvloop's transports share: the clock, and writing without a copy."""


cdef inline Nanos monotonic_now() noexcept nogil:
    cdef timespec at
    clock_gettime(CLOCK_MONOTONIC, &at)
    return <Nanos>at.tv_sec * 1_000_000_000 + at.tv_nsec


cdef class Outgoing:
    """Bytes to write, exported by the buffer protocol; keeps their owner alive."""

    cdef Slice slice

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, <void*>self.slice.bytes.data, self.slice.bytes.size, 1, flags)

    def __len__(self):
        return self.slice.bytes.size


# Returns whether there was anything. The transport of an encrypted connection takes no other
# buffers than memoryviews.
cdef bint write_slices(object transport, vector[Slice]* slices, bint encrypted=False) except -1:
    cdef Outgoing outgoing
    cdef bint wrote = not slices.empty()
    cdef size_t i
    for i in range(slices.size()):
        outgoing = Outgoing.__new__(Outgoing)
        outgoing.slice = slices.at(i)
        transport.write(memoryview(outgoing) if encrypted else outgoing)
    slices.clear()
    return wrote
