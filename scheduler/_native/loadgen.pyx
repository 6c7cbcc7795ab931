"""The binding of the load generator and of the echo backend: uvloop protocols around csrc/loadgen.

Per read one call goes through here, per turn one flush of each dirty connection; nothing runs per
request. `benchmarks.openloop` opens the sockets and says when the load begins and ends.
"""

from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdint cimport uint8_t
from libcpp.memory cimport unique_ptr
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from scheduler._native.loadgen cimport *

cdef enum:
    READ_BUFFER_BYTES = 256 * 1024
    PULL_BYTES = 1024 * 1024
    WRITE_HIGH_WATER_BYTES = 4 * 1024 * 1024
    STATUS_CODES = 17

cdef Nanos NEVER = 0x7FFFFFFFFFFFFFFF


include "shell.pxi"


cdef Span span_of(const unsigned char[::1] data):
    cdef Span span
    span.data = &data[0] if data.shape[0] else NULL
    span.size = data.shape[0]
    return span


cdef class LatencyHistogram:
    """Nanoseconds in logarithmic buckets (csrc/loadgen/histogram.h)."""

    cdef Histogram histogram

    def add(self, int64_t value_ns):
        self.histogram.add(value_ns)

    def quantile(self, double q):
        """The value in ns that a share `q` of all values does not exceed; 0 when empty."""
        return self.histogram.quantile(q)

    def __len__(self):
        return self.histogram.count()


def poisson_arrivals(double rate_per_s, uint64_t seed, size_t count):
    """The first `count` intended starts of the open loop, in ns after its beginning."""
    cdef Arrivals arrivals = poisson(rate_per_s, seed)
    offsets = []
    for _ in range(count):
        offsets.append(arrivals.peek())
        arrivals.advance()
    return offsets


cdef class LoadConnection:
    """A uvloop buffered protocol around one connection of the generator."""

    cdef Load load
    cdef uint32_t index
    cdef object transport
    cdef bint write_paused
    cdef bint write_pending

    def __cinit__(self, Load load):
        self.load = load

    def connection_made(self, transport):
        self.transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH_WATER_BYTES)
        self.index = self.load.generator.get().connected()
        self.load.connections.append(self)
        self.load.schedule_turn()

    def get_buffer(self, sizehint):
        return self.load.read_buffer

    def buffer_updated(self, Py_ssize_t size):
        cdef Span data
        data.data = <const uint8_t*><unsigned char*>self.load.read_memory
        data.size = size
        self.load.generator.get().received(self.index, data, monotonic_now())
        self.load.schedule_turn()

    def eof_received(self):
        return False

    def connection_lost(self, exc):
        self.transport = None
        self.load.generator.get().connection_lost(self.index)

    def pause_writing(self):
        self.write_paused = True

    def resume_writing(self):
        self.write_paused = False
        if self.write_pending:
            self.flush()

    cdef flush(self):
        cdef bint more = True
        while more and self.transport is not None and not self.write_paused:
            self.load.generator.get().pull(self.index, PULL_BYTES, &self.load.slices)
            more = write_slices(self.transport, &self.load.slices)
        self.write_pending = self.write_paused


cdef class Load:
    """One load on one server, driven by `loop`; times are int64 nanoseconds (CLOCK_MONOTONIC).

    `timer` is a TimerFd the owner reads in the loop and answers with `wake()`. Either `in_flight`
    (closed loop) or `arrivals_ns` or `rate_per_s` (open loop) is given.
    """

    cdef unique_ptr[Generator] generator
    cdef object loop
    cdef object timer
    cdef object turn_callback
    cdef bint turn_scheduled
    cdef list connections
    cdef object read_memory
    cdef object read_buffer
    cdef vector[Slice] slices
    cdef vector[uint32_t] dirty

    def __cinit__(self, loop, timer, *, str path, str authority, uint32_t in_flight=0,
                  double rate_per_s=0, arrivals_ns=(), requests_max=None, timeout_ns=None,
                  objective_ns=None, double sample_share=0, uint64_t seed=1):
        cdef LoadPlan plan
        plan.path = path.encode()
        plan.authority = authority.encode()
        plan.in_flight = in_flight
        plan.rate_per_s = rate_per_s
        plan.arrivals = list(arrivals_ns)
        if requests_max is not None:
            plan.requests_max = requests_max
        if timeout_ns is not None:
            plan.timeout_ns = timeout_ns
        if objective_ns is not None:
            plan.objective_ns = objective_ns
        plan.sample_share = sample_share
        plan.seed = seed
        self.generator.reset(new Generator(plan))
        self.loop = loop
        self.timer = timer
        self.connections = []
        self.read_memory = bytearray(READ_BUFFER_BYTES)
        self.read_buffer = memoryview(self.read_memory)
        self.turn_callback = self.turn

    def add_payload(self, message, uint32_t rows):
        """A serialised ModelInferRequest (copied) and its number of rows."""
        self.generator.get().add_payload(span_of(message), rows)

    def protocol(self):
        """A protocol for one connection to the server."""
        return LoadConnection(self)

    @property
    def ready(self):
        """Whether every connection may start calls."""
        return self.generator.get().ready()

    @property
    def stopped(self):
        return self.generator.get().stopped()

    @property
    def in_flight(self):
        return self.generator.get().in_flight()

    def begin(self):
        self.generator.get().begin(monotonic_now())
        self.schedule_turn()

    def window_begin(self):
        """Statistics of the window start from nothing."""
        self.generator.get().window_begin(monotonic_now())

    def window_end(self):
        self.generator.get().window_end(monotonic_now())

    def stop(self):
        """No further calls; `in_flight` falls to 0 as the last replies come."""
        self.generator.get().stop()

    cdef schedule_turn(self):
        if not self.turn_scheduled:
            self.turn_scheduled = True
            self.loop.call_soon(self.turn_callback)

    def wake(self):
        """The timer fired."""
        self.timer.fired()
        self.turn()

    def turn(self):
        cdef uint32_t index
        cdef Nanos wake_at
        self.turn_scheduled = False
        self.generator.get().turn(monotonic_now())
        self.generator.get().take_dirty(&self.dirty)
        for index in self.dirty:
            (<LoadConnection>self.connections[index]).flush()
        wake_at = self.generator.get().next_wake()
        if wake_at != NEVER:
            self.timer.arm_ns(wake_at)

    def totals(self):
        """Counts since `begin`; `statuses` maps gRPC status codes to answers."""
        cdef const Totals* totals = &self.generator.get().totals()
        cdef uint64_t* statuses = (<Totals*>totals).status_data()
        return {
            "sent": totals.sent,
            "sent_rows": totals.sent_rows,
            "answered": totals.answered,
            "ok": totals.ok,
            "ok_rows": totals.ok_rows,
            "ok_empty": totals.ok_empty,
            "connections_lost": totals.connections_lost,
            "statuses": {str(code): statuses[code] for code in range(STATUS_CODES)
                         if statuses[code]},
            "first_error": self.generator.get().first_error().decode("utf-8", "replace"),
        }

    def window(self):
        """The measured window: rates over its time, latencies (ns) of the calls due in it."""
        cdef const Window* window = &self.generator.get().window()
        return {
            "duration_ns": window.ended - window.began,
            "ok": window.ok,
            "ok_rows": window.ok_rows,
            "due": window.due,
            "good": window.good,
            "failed": window.failed,
            "latency_ns": histogram_dict(&window.latency),
            "start_delay_ns": histogram_dict(&window.start_delay),
        }

    def latency_buckets(self):
        """(lower, upper, count) of the non-empty latency buckets, ns."""
        cdef Bucket bucket
        return [(bucket.lower, bucket.upper, bucket.count)
                for bucket in (<Histogram*>&self.generator.get().window().latency).buckets()]

    def samples(self):
        """(index of the payload, reply) of the kept replies."""
        cdef const vector[Sample]* samples = &self.generator.get().samples()
        cdef Span reply
        cdef size_t i
        kept = []
        for i in range(samples.size()):
            reply = (<Sample*>&samples.at(i)).reply.span()
            kept.append((samples.at(i).payload, (<const char*>reply.data)[:reply.size]))
        return kept


cdef dict histogram_dict(const Histogram* recorded):
    cdef Histogram* histogram = <Histogram*>recorded
    count = histogram.count()
    return {
        "count": count,
        "mean": histogram.sum() / count if count else 0.0,
        "min": histogram.min(),
        "p50": histogram.quantile(0.5),
        "p90": histogram.quantile(0.9),
        "p99": histogram.quantile(0.99),
        "p99.9": histogram.quantile(0.999),
        "max": histogram.max(),
    }


cdef class EchoConnection:
    """One connection of the echo backend: answers in the same callback that read."""

    cdef EchoServer server
    cdef uint32_t index
    cdef object transport
    cdef bint write_paused

    def __cinit__(self, EchoServer server):
        self.server = server

    def connection_made(self, transport):
        self.transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH_WATER_BYTES)
        self.index = self.server.core.get().connected()
        self.flush()

    def get_buffer(self, sizehint):
        return self.server.read_buffer

    def buffer_updated(self, Py_ssize_t size):
        cdef Span data
        data.data = <const uint8_t*><unsigned char*>self.server.read_memory
        data.size = size
        sound = self.server.core.get().received(self.index, data, monotonic_now())
        self.server.core.get().answer(self.index)
        self.flush()
        if not sound and self.transport is not None:
            self.transport.close()

    def eof_received(self):
        return False

    def connection_lost(self, exc):
        self.transport = None
        self.server.core.get().connection_lost(self.index)

    def pause_writing(self):
        self.write_paused = True

    def resume_writing(self):
        self.write_paused = False
        self.flush()

    cdef flush(self):
        cdef bint more = True
        while more and self.transport is not None and not self.write_paused:
            self.server.core.get().pull(self.index, PULL_BYTES, &self.server.slices)
            more = write_slices(self.transport, &self.server.slices)


cdef class EchoServer:
    """The stub backend: method `path` answers a ModelInferRequest with its inputs as outputs."""

    cdef unique_ptr[CppEchoServer] core
    cdef object read_memory
    cdef object read_buffer
    cdef vector[Slice] slices

    def __cinit__(self, str path):
        self.core.reset(new CppEchoServer(path.encode()))
        self.read_memory = bytearray(READ_BUFFER_BYTES)
        self.read_buffer = memoryview(self.read_memory)

    def protocol(self):
        """A protocol for one accepted connection."""
        return EchoConnection(self)

    @property
    def executions(self):
        """ModelInfer calls answered."""
        return self.core.get().executions()

    @property
    def rows(self):
        """Rows (first dimension of the first input) of all calls answered."""
        return self.core.get().rows()
