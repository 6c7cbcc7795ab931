"""The binding of csrc/engine/latency/model.h, for tests, benchmarks and profiles."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from libcpp cimport bool as cbool
from libcpp.vector cimport vector

from collections import namedtuple


cdef extern from "engine/archive.h" namespace "infersched::engine" nogil:
    cdef cppclass ArchiveWriter:
        ArchiveWriter()
        vector[uint8_t] take()

    cdef cppclass ArchiveReader:
        ArchiveReader(const vector[uint8_t]&)
        cbool complete()


cdef extern from "engine/latency/model.h" namespace "infersched::engine" nogil:
    uint32_t kLatencyRowsMax

    cdef struct LatencyAccuracy:
        uint64_t observations, predicted, beyond, ignored, drifts
        double log_ratio_mean, log_ratio_deviation

    cdef struct LatencySize:
        uint32_t rows
        uint64_t observations
        int64_t median_ns, longest_ns

    cdef cppclass CppLatencyModel "infersched::engine::LatencyModel":
        CppLatencyModel(double)
        double attainment()
        void set_attainment(double)
        void prime(uint32_t, double, uint64_t) except +
        void observe(uint32_t, int64_t, double) except +
        cbool known()
        int64_t expected(uint32_t, double)
        int64_t bound(uint32_t)
        uint32_t largest_within(int64_t, uint32_t)
        double margin()
        uint32_t rows_trusted(uint32_t, uint32_t)
        uint32_t rows_measured()
        double alpha_ns()
        double beta_ns()
        double slowdown(double)
        LatencyAccuracy accuracy()
        vector[LatencySize] sizes() except +
        size_t memory_bytes()
        void archive(ArchiveWriter&) except +
        void archive(ArchiveReader&) except +


ROWS_MAX = kLatencyRowsMax

Accuracy = namedtuple(
    "Accuracy",
    "observations predicted beyond ignored drifts log_ratio_mean log_ratio_deviation",
)
Size = namedtuple("Size", "rows observations median_ns longest_ns")


cdef class LatencyModel:
    cdef CppLatencyModel* _model

    def __cinit__(self, double attainment=0.99):
        self._model = new CppLatencyModel(attainment)

    def __dealloc__(self):
        del self._model

    @property
    def attainment(self):
        return self._model.attainment()

    @attainment.setter
    def attainment(self, double attainment):
        self._model.set_attainment(attainment)

    def prime(self, uint32_t rows, double mean_ns, uint64_t count):
        self._model.prime(rows, mean_ns, count)

    def observe(self, uint32_t rows, int64_t ran_ns, double running=1):
        self._model.observe(rows, ran_ns, running)

    def observe_all(self, rows, ran_ns):
        """Both of equal length, in order: as many calls without Python in between."""
        cdef vector[uint32_t] sizes = rows
        cdef vector[int64_t] times = ran_ns
        cdef size_t i
        if sizes.size() != times.size():
            raise ValueError("rows and times differ in number")
        with nogil:
            for i in range(sizes.size()):
                self._model.observe(sizes[i], times[i], 1)

    @property
    def known(self):
        return self._model.known()

    def expected(self, uint32_t rows, double running=0):
        return self._model.expected(rows, running)

    def bound(self, uint32_t rows):
        return self._model.bound(rows)

    def largest_within(self, int64_t budget_ns, uint32_t rows_max):
        return self._model.largest_within(budget_ns, rows_max)

    def decide_all(self, budgets_ns, uint32_t rows_max):
        """The sum of largest_within over many budgets, without Python in between."""
        cdef vector[int64_t] budgets = budgets_ns
        cdef size_t i
        cdef uint64_t total = 0
        with nogil:
            for i in range(budgets.size()):
                total += self._model.largest_within(budgets[i], rows_max)
        return total

    @property
    def margin(self):
        return self._model.margin()

    def rows_trusted(self, uint32_t rows_max, uint32_t step=1):
        return self._model.rows_trusted(rows_max, step)

    @property
    def rows_measured(self):
        return self._model.rows_measured()

    @property
    def alpha_ns(self):
        return self._model.alpha_ns()

    @property
    def beta_ns(self):
        return self._model.beta_ns()

    def slowdown(self, double running):
        return self._model.slowdown(running)

    @property
    def accuracy(self):
        cdef LatencyAccuracy seen = self._model.accuracy()
        return Accuracy(seen.observations, seen.predicted, seen.beyond, seen.ignored, seen.drifts,
                        seen.log_ratio_mean, seen.log_ratio_deviation)

    @property
    def sizes(self):
        cdef vector[LatencySize] sizes = self._model.sizes()
        return [Size(size.rows, size.observations, size.median_ns, size.longest_ns)
                for size in sizes]

    @property
    def memory_bytes(self):
        return self._model.memory_bytes()

    def save(self):
        cdef ArchiveWriter writer
        self._model.archive(writer)
        cdef vector[uint8_t] state = writer.take()
        return (<char*>state.data())[:state.size()]

    def load(self, bytes state):
        cdef vector[uint8_t] copy
        copy.resize(len(state))
        if state:
            memcpy(copy.data(), <const char*>state, len(state))
        cdef ArchiveReader* reader = new ArchiveReader(copy)
        try:
            self._model.archive(reader[0])
            return reader.complete()
        finally:
            del reader
