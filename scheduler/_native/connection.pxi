# One connection of the data plane, as the loop sees it; included by gateway.pyx.


cdef class Connection:
    """A uvloop buffered protocol around one connection of the gateway."""

    cdef Gateway gateway
    cdef ConnectionId id
    cdef object transport
    cdef object on_open    # called with the transport's peer name; returns the connection id
    cdef object on_lost    # called once when the connection is gone; None for clients
    cdef bint write_paused
    cdef bint read_paused
    cdef uint64_t read_turn         # in which `read_turn_bytes` were read
    cdef Py_ssize_t read_turn_bytes
    cdef Space space                # where the bytes of the read under way go; empty: shared buffer
    cdef bint is_client
    cdef bint encrypted

    def __cinit__(self, Gateway gateway, on_open, on_lost=None):
        self.gateway = gateway
        self.on_open = on_open
        self.on_lost = on_lost
        self.is_client = on_lost is None

    def connection_made(self, transport):
        self.transport = transport
        self.encrypted = transport.get_extra_info("ssl_object") is not None
        transport.set_write_buffer_limits(high=WRITE_HIGH_WATER_BYTES)
        self.id = self.on_open(transport)
        if self.id == 0:
            transport.abort()
            return
        self.gateway.connections[self.id] = self
        self.gateway.schedule_turn()

    # Followed by buffer_updated, or by nothing, before anything else happens in the loop.
    def get_buffer(self, sizehint):
        self.space = self.gateway.core.get().receive_space(self.id)
        if self.space.size == 0:
            return self.gateway.read_buffer
        return PyMemoryView_FromMemory(<char*>self.space.data, self.space.size, PyBUF_WRITE)

    def buffer_updated(self, Py_ssize_t size):
        cdef Span data
        data.data = self.space.data
        if self.space.size == 0:
            data.data = <const uint8_t*><unsigned char*>self.gateway.read_memory
        data.size = size
        self.gateway.core.get().received(self.id, data, monotonic_now())
        self.gateway.schedule_turn()
        self.count_read(size)

    # The loop reads on while there is something: what is beyond the bound comes after the turn.
    cdef count_read(self, Py_ssize_t size):
        if self.read_turn != self.gateway.turns:
            self.read_turn = self.gateway.turns
            self.read_turn_bytes = 0
        self.read_turn_bytes += size
        if self.read_turn_bytes < TURN_READ_BYTES or self.read_paused:
            return
        if self.transport is not None and not self.transport.is_closing():
            self.read_paused = True
            self.transport.pause_reading()
            self.gateway.held.append(self)

    def eof_received(self):
        return False

    def connection_lost(self, exc):
        if self.id != 0:
            reason = str(exc) if exc is not None else "closed by the peer"
            self.gateway.core.get().connection_lost(self.id, reason.encode(), monotonic_now())
            self.gateway.connections.pop(self.id, None)
            self.gateway.schedule_turn()
        self.transport = None
        self.tell_lost()

    def retire(self):
        """Closes the connection when its calls are done; nobody wants another one for it."""
        self.on_lost = None
        if self.id != 0:
            self.gateway.core.get().retire(self.id)
            self.gateway.schedule_turn()

    # Once: lost, or retired by the other side and to be replaced.
    cdef tell_lost(self):
        on_lost, self.on_lost = self.on_lost, None
        if on_lost is not None:
            on_lost()

    def pause_writing(self):
        self.write_paused = True

    def resume_writing(self):
        self.write_paused = False
        self.flush()
        self.gateway.schedule_turn()

    cdef shut(self):
        if self.transport is None:
            return
        if not self.is_client:
            self.transport.abort()  # a backend given up may never read again
            return
        self.transport.close()  # after what is written for the client
        if self.transport is not None and self.transport.get_write_buffer_size() > 0:
            self.gateway.loop.call_later(CLOSE_TIMEOUT_S, self.transport.abort)

    # What fails here fails this connection only: the others of the turn are still to be written.
    cdef flush(self):
        if self.transport is None:
            return
        try:
            if not self.write_paused:
                self.write_out()
            self.set_reading()
        except Exception as error:
            self.gateway.slices.clear()
            self.gateway.loop.call_exception_handler(
                {"message": "a connection cannot be written to", "exception": error}
            )
            self.transport.abort()

    cdef write_out(self):
        cdef vector[Slice]* slices = &self.gateway.slices
        slices.clear()
        self.gateway.core.get().pull(self.id, PULL_BYTES, slices)
        write_slices(self.transport, slices, self.encrypted)

    cdef read_on(self):
        if self.transport is not None:
            self.set_reading()

    cdef set_reading(self):
        if self.gateway.core.get().wants_read(self.id) == self.read_paused:
            self.read_paused = not self.read_paused
            if self.transport.is_closing():
                return
            if self.read_paused:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()
