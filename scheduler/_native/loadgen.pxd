"""C++ declarations of csrc/loadgen that the binding uses."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.string cimport string
from libcpp.vector cimport vector

ctypedef int64_t Nanos


cdef extern from "base/bytes.h" namespace "infersched" nogil:
    cdef cppclass Span:
        const uint8_t* data
        size_t size

    cdef cppclass BufferRef:
        Span span()

    cdef cppclass Slice:
        Span bytes


cdef extern from "loadgen/histogram.h" namespace "infersched::loadgen" nogil:
    cdef cppclass Bucket "infersched::loadgen::Histogram::Bucket":
        Nanos lower
        Nanos upper
        uint64_t count

    cdef cppclass Histogram:
        Histogram()
        void add(Nanos value)
        void clear()
        uint64_t count()
        Nanos sum()
        Nanos min()
        Nanos max()
        Nanos quantile(double q)
        vector[Bucket] buckets() except +


cdef extern from "loadgen/arrivals.h" namespace "infersched::loadgen" nogil:
    cdef cppclass Arrivals:
        Nanos peek()
        void advance()

    Arrivals poisson "infersched::loadgen::Arrivals::poisson"(double rate_per_s, uint64_t seed)


cdef extern from "loadgen/generator.h" namespace "infersched::loadgen" nogil:
    cdef cppclass LoadPlan:
        LoadPlan()
        string path
        string authority
        uint32_t in_flight
        double rate_per_s
        vector[Nanos] arrivals
        uint64_t requests_max
        Nanos timeout_ns
        Nanos objective_ns
        double sample_share
        uint64_t seed

    cdef int kStatusCodes

    cdef cppclass Totals:
        uint64_t sent
        uint64_t sent_rows
        uint64_t answered
        uint64_t ok
        uint64_t ok_rows
        uint64_t ok_empty
        uint64_t connections_lost
        uint64_t* status_data "statuses.data"()

    cdef cppclass Window:
        Nanos began
        Nanos ended
        uint64_t ok
        uint64_t ok_rows
        uint64_t due
        uint64_t good
        uint64_t failed
        Histogram latency
        Histogram start_delay

    cdef cppclass Sample:
        uint32_t payload
        BufferRef reply

    cdef cppclass Generator:
        Generator(LoadPlan plan) except +
        void add_payload(Span message, uint32_t rows) except +
        uint32_t connected() except +
        void received(uint32_t connection, Span data, Nanos now) except +
        void connection_lost(uint32_t connection) except +
        void pull(uint32_t connection, size_t bytes_max, vector[Slice]* out) except +
        void take_dirty(vector[uint32_t]* connections) except +
        cbool ready()
        void begin(Nanos now) except +
        void window_begin(Nanos now) except +
        void window_end(Nanos now)
        void stop()
        cbool stopped()
        uint64_t in_flight()
        void turn(Nanos now) except +
        Nanos next_wake()
        const Totals& totals()
        const Window& window()
        const vector[Sample]& samples()
        const string& first_error()


cdef extern from "loadgen/echo.h" namespace "infersched::loadgen" nogil:
    cdef cppclass CppEchoServer "infersched::loadgen::EchoServer":
        CppEchoServer(string path) except +
        uint32_t connected() except +
        cbool received(uint32_t connection, Span data, Nanos now) except +
        void connection_lost(uint32_t connection)
        void answer(uint32_t connection) except +
        void pull(uint32_t connection, size_t bytes_max, vector[Slice]* out) except +
        uint64_t executions()
        uint64_t rows()
