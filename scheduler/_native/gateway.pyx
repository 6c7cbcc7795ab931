"""The data plane's binding: gateway, connections as uvloop buffered protocols, the loop turn.

Per read one call goes through here, per turn one flush of each dirty connection; nothing runs per
request. `scheduler.dataplane` opens sockets and hands the protocols of this module to the loop.
"""

import os

from cpython.buffer cimport PyBUF_WRITE, PyBuffer_FillInfo
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport uint8_t
from libcpp.memory cimport make_shared, shared_ptr, unique_ptr
from libcpp.string cimport string
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, nanosleep, timespec

from scheduler._native.apply cimport (
    backend_config,
    fill_limits,
    loadable_model,
    model_config,
    shared_memory_region,
)
from scheduler._native.gateway cimport *

cdef enum:
    # One read takes at most this; all connections of the loop share the buffer. The rest of a large
    # message is read into the message.
    READ_BUFFER_BYTES = 64 * 1024
    # What one connection may bring in and take out in a turn, before others have theirs.
    TURN_READ_BYTES = 256 * 1024
    PULL_BYTES = 256 * 1024
    WRITE_HIGH_WATER_BYTES = 1024 * 1024
    # A client that is to be closed gets this time to read what was written for it.
    CLOSE_TIMEOUT_S = 10

cdef Nanos NEVER = 0x7FFFFFFFFFFFFFFF

cdef extern from "<sys/prctl.h>" nogil:
    int PR_SET_TIMERSLACK
    int prctl(int option, unsigned long value)


include "latency.pxi"
include "memory.pxi"
include "shell.pxi"
include "connection.pxi"


cdef class KnownModel:
    """A model of the last Apply."""

    cdef shared_ptr[ModelConfig] config


cdef class Gateway:
    """Owns the C++ gateway and drives its turns on `loop`.

    `timer` is a TimerFd the owner reads in the loop and answers with `wake()`. `on_notice` is
    called with (kind, backend, model, connected, unanswered, reason) for what the control plane
    must learn.
    """

    cdef unique_ptr[CppGateway] core
    cdef CountersPage* page
    cdef size_t page_bytes
    cdef object loop
    cdef object timer
    cdef object on_notice
    cdef object turn_callback
    cdef bint turn_scheduled
    cdef uint64_t turns
    cdef list held  # connections that have read their share of a turn
    cdef dict connections
    cdef readonly str shared_memory_key  # empty: there is none
    cdef readonly size_t shared_memory_bytes
    cdef dict known_models  # serialised scheduler.v1.Model -> KnownModel
    cdef object read_memory
    cdef object read_buffer
    cdef vector[Slice] slices
    cdef vector[ConnectionId] dirty
    cdef vector[ConnectionId] closing
    cdef vector[ConnectionId] retired

    def __cinit__(self, loop, timer, int counters_fd, on_notice):
        cdef void* memory
        self.page_bytes = sizeof(CountersPage)
        os.ftruncate(counters_fd, self.page_bytes)
        memory = mmap(NULL, self.page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, counters_fd, 0)
        if memory == MAP_FAILED:
            raise OSError("cannot map the counters page")
        self.page = <CountersPage*>memory
        self.core.reset(new CppGateway(self.page))
        self.page.pid = os.getpid()
        self.loop = loop
        self.timer = timer
        self.on_notice = on_notice
        self.held = []
        self.connections = {}
        self.known_models = {}
        self.shared_memory_key = ""
        self.read_memory = bytearray(READ_BUFFER_BYTES)
        self.read_buffer = memoryview(self.read_memory)
        self.turn_callback = self.turn
        # The loop's thread sleeps some microseconds at a time: not 50 more of them, the default.
        prctl(PR_SET_TIMERSLACK, 1)

    def __dealloc__(self):
        self.core.reset()
        if self.page != NULL:
            munmap(self.page, self.page_bytes)

    # -- connections -------------------------------------------------------------------------------

    def client_protocol(self):
        """A protocol for one accepted client connection."""
        return Connection(self, self._client_open)

    def backend_protocol(self, uint32_t backend, address, on_lost):
        """A protocol for one connection to the backend of that index, dialled at `address`.

        `on_lost` is called once: when the connection is gone or takes no more calls.
        """
        def on_open(transport):
            return self.core.get().backend_connected(backend, address.encode(), monotonic_now())
        return Connection(self, on_open, on_lost)

    def cold_protocol(self, on_lost):
        """A protocol for the connection to the control plane's cold servicers."""
        def on_open(transport):
            return self.core.get().cold_connected(monotonic_now())
        return Connection(self, on_open, on_lost)

    def _client_open(self, transport):
        peer = transport.get_extra_info("peername")
        address = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "unix"
        return self.core.get().client_connected(address.encode(), monotonic_now())

    # -- the loop turn -----------------------------------------------------------------------------

    cdef schedule_turn(self):
        if not self.turn_scheduled:
            self.turn_scheduled = True
            self.loop.call_soon(self.turn_callback)

    def wake(self):
        """The timer fired."""
        self.timer.fired()
        self.turn()

    def turn(self):
        """One turn: events, engine, actions; then every dirty connection is written once."""
        cdef Nanos started = monotonic_now()
        cdef bint left_over
        cdef ConnectionId id
        cdef Connection connection
        self.turn_scheduled = False
        self.turns += 1
        left_over = self.core.get().turn(started)
        self.core.get().take_dirty(&self.dirty)
        for id in self.dirty:
            connection = self.connections.get(id)
            if connection is not None:
                connection.flush()
        held, self.held = self.held, []
        for connection in held:
            connection.read_on()
        self.core.get().take_closing(&self.closing)
        for id in self.closing:
            connection = self.connections.get(id)
            if connection is not None:
                connection.shut()
        self.core.get().take_retired(&self.retired)
        for id in self.retired:
            connection = self.connections.get(id)
            if connection is not None:
                connection.tell_lost()
        cdef Nanos wake_at = self.core.get().next_wake()
        if wake_at != NEVER:
            self.timer.arm_ns(wake_at)
        self.page.loop_busy_ns += monotonic_now() - started
        if left_over or self.core.get().wants_turn():
            self.schedule_turn()
        self.tell_notices()
        # Who has read his share of the turn has more to bring.
        if not self.turn_scheduled and not held:
            self.gather(started)

    # Whatever comes for any connection waits meanwhile: waking the loop is what this saves.
    cdef gather(self, Nanos started):
        cdef timespec length
        length.tv_sec = 0
        length.tv_nsec = self.core.get().gather_ns(started, monotonic_now())
        if length.tv_nsec > 0:
            with nogil:
                nanosleep(&length, NULL)

    cdef tell_notices(self):
        cdef Notice notice
        while self.core.get().take_notice(&notice):
            self.on_notice(
                <int>notice.kind, notice.backend, notice.model, notice.connected,
                notice.unanswered, notice.reason.decode("utf-8", "replace"),
            )

    # -- steering ----------------------------------------------------------------------------------

    def apply(self, message):
        """Makes a scheduler.v1.Apply so. Returns the error text, empty where all took effect."""
        cdef WantedState wanted
        wanted.generation = message.generation
        try:
            fill_limits(&wanted.limits, message.limits)
            known = self.fill_models(&wanted, message.models)
            for backend in message.backends:
                wanted.backends.push_back(backend_config(backend, self.shared_memory_key))
            for region in message.regions:
                wanted.regions.push_back(shared_memory_region(region))
            for model in message.loadable:
                wanted.loadable.push_back(loadable_model(model))
        except OverflowError as overflow:
            return f"a number is out of range: {overflow}"
        cdef string error = self.core.get().apply(wanted, monotonic_now())
        if error.empty():
            self.known_models = known
        self.schedule_turn()
        return error.decode()

    # Thousands of models are said again with every Apply: what has not changed is not read again.
    cdef dict fill_models(self, WantedState* wanted, models):
        cdef KnownModel known
        cdef dict seen = {}
        for model in models:
            message = model.SerializeToString(deterministic=True)
            known = self.known_models.get(message)
            if known is None:
                known = KnownModel.__new__(KnownModel)
                known.config = make_shared[ModelConfig](model_config(model))
            seen[message] = known
            wanted.models.push_back(known.config)
        return seen

    def adopt_shared_memory(self, str key, int fd, size_t size):
        """Receives large messages into this segment, which backends know by `key`. Once.

        Raises OSError where it cannot be mapped. The mapping, and `fd`, last as long as the
        process.
        """
        cdef void* memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
        if memory == MAP_FAILED:
            raise OSError(f"cannot map {size} bytes of shared memory")
        shared_blocks().adopt(<uint8_t*>memory, size, fd)
        self.shared_memory_key = key
        self.shared_memory_bytes = size

    def close_clients(self):
        """Closes every client connection once what was written for it has left."""
        cdef Connection connection
        for connection in list(self.connections.values()):
            if connection.is_client:
                connection.shut()

    def set_devices(self, message):
        """Takes the readings of a scheduler.v1.MemoryReadings."""
        for reading in message.devices:
            self.core.get().set_device(reading.index, device_memory(reading), monotonic_now())
        self.schedule_turn()

    def drain(self, int64_t deadline_ms):
        """Stops admitting; the notice `drained` comes at the latest after `deadline_ms`."""
        cdef Nanos now = monotonic_now()
        self.core.get().drain(now + deadline_ms * 1_000_000, now)
        self.schedule_turn()

    # -- what is seen from outside -----------------------------------------------------------------

    @property
    def generation(self):
        return self.core.get().generation()

    @property
    def draining(self):
        return self.core.get().draining()

    @property
    def host_bytes(self):
        return self.core.get().host_bytes()

    @property
    def client_connections(self):
        return self.core.get().client_connections()

    def backends(self):
        """(index, address, open, wanted, in-flight batches, in-flight rows, state) by backend."""
        cdef BackendStatus status
        return [
            (status.index, status.address.decode(), status.connections_open,
             status.connections_wanted, status.inflight_batches, status.inflight_rows,
             <int>status.state)
            for status in self.core.get().backends()
        ]

    def shared_memory(self):
        """(used bytes, backed bytes, quarantined calls, calls ever) of the shared memory."""
        cdef SharedMemoryStatus status = self.core.get().shared_memory()
        return status.used_bytes, status.backed_bytes, status.quarantined_calls, status.calls

    def loading(self):
        """(name, requests, bytes, oldest_age_ns) of each model that requests wait for."""
        cdef LoadingStatus status
        cdef Nanos now = monotonic_now()
        return [
            (status.model.decode(), status.requests, status.bytes,
             max(now - status.oldest_arrival, 0))
            for status in self.core.get().loading()
        ]

    def batches(self):
        """(model, backend, requests, rows, age_ns, memory_limited) of each batch in flight."""
        cdef BatchStatus status
        return [
            (
                status.model,
                status.backend,
                status.requests,
                status.rows,
                status.age_ns,
                bool(status.memory_limited),
            )
            for status in self.core.get().batches(monotonic_now())
        ]

    def queues(self, models=()):
        """(model, requests, rows, bytes, oldest_age_ns, in-flight batches, merging), () = all."""
        cdef Nanos now = monotonic_now()
        cdef QueueStatus status
        cdef uint32_t model
        queues = []
        known = self.core.get().models()
        for model in sorted(set(known).intersection(models)) if models else known:
            status = self.core.get().queue_status(model)
            age_ns = 0 if status.oldest_arrival == NEVER else max(now - status.oldest_arrival, 0)
            queues.append((model, status.requests, status.rows, status.bytes, age_ns,
                           status.inflight_batches, status.merging))
        return queues

    def latencies(self, uint32_t model):
        """What was learned of the model on each of its backends, see latency.pxi."""
        return learned_latencies(self.core.get(), model)

    def memory(self, uint32_t model):
        """What was learned of the model's need on each of its devices, see memory.pxi."""
        return learned_needs(self.core.get(), model)

    def devices(self):
        """(index, known, free, total, headroom, measured_at_ns, fixed, reserved, own,
        own_measured_at_ns), see memory.pxi.
        """
        return device_states(self.core.get())

    def statistics(self, models):
        """(index, rows, batches, completed, failed, rejected, cancelled, queue_ns, backend_ns,
        last_answer_age_ns, batch sizes) of these models, of all where the list is empty.

        The four outcomes are (count, total_ns); the age is -1 before the first answer; batch sizes
        are (rows, batches, backend_ns).
        """
        cdef Nanos now = monotonic_now()
        cdef ModelStats stats
        cdef BatchSizeStats size
        cdef uint32_t model
        known = set(self.core.get().models())
        found = []
        for model in sorted(known.intersection(models) if models else known):
            stats = self.core.get().scheduler().model_stats(model)
            age_ns = max(now - stats.last_answer, 0) if stats.last_answer else -1
            sizes = [(size.rows, size.batches, size.backend_ns) for size in stats.batch_sizes]
            found.append((
                model, stats.rows, stats.batches,
                (stats.completed, stats.completed_ns), (stats.failed, stats.failed_ns),
                (stats.rejected, stats.rejected_ns), (stats.cancelled, stats.cancelled_ns),
                stats.queue_ns, stats.backend_ns, age_ns, sizes,
            ))
        return found
