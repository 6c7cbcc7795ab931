"""C++ declarations of csrc/gateway that the binding uses."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.memory cimport shared_ptr
from libcpp.string cimport string
from libcpp.vector cimport vector

ctypedef int64_t Nanos
ctypedef uint64_t ConnectionId


cdef extern from "base/bytes.h" namespace "infersched" nogil:
    cdef cppclass Span:
        const uint8_t* data
        size_t size

    cdef cppclass Space:
        uint8_t* data
        size_t size

    cdef cppclass Slice:
        Span bytes


cdef extern from "base/status.h" namespace "infersched" nogil:
    cdef enum class StatusCode:
        pass

    cdef cppclass Status:
        @staticmethod
        Status error(StatusCode code, string message)


cdef extern from "gateway/out_of_memory.h" namespace "infersched::gateway" nogil:
    bint c_says_out_of_memory "infersched::gateway::says_out_of_memory" (const Status& status)


cdef extern from "base/shared_blocks.h" namespace "infersched" nogil:
    cdef cppclass SharedBlocks:
        void adopt(uint8_t* memory, size_t size, int fd) except +

    SharedBlocks& shared_blocks()


cdef extern from "kserve/schema.h" namespace "infersched::kserve" nogil:
    cdef enum class DataType(uint8_t):
        kInvalid

    DataType parse_data_type(const string& text)

    cdef cppclass Padding:
        uint32_t axis
        vector[int64_t] buckets
        string value
        string mask_input
        string length_input

    cdef cppclass TensorSchema:
        string name
        DataType data_type
        vector[int64_t] dims
        cbool optional
        cbool shape_tensor
        cbool ragged
        Padding padding
        string trim_to
        uint32_t trim_axis

    cdef cppclass ModelSchema:
        string name
        string version
        int64_t max_batch_size
        int64_t rows_max
        cbool merge
        cbool decoupled
        cbool sequence
        vector[TensorSchema] inputs
        vector[TensorSchema] outputs


cdef extern from "http2/session.h" namespace "infersched::http2" nogil:
    cdef enum class Compression(uint8_t):
        kNone


cdef extern from "engine/engine.h" namespace "infersched::engine" nogil:
    cdef cppclass CountersPage:
        uint32_t pid
        uint64_t loop_busy_ns

    cdef cppclass TritonQueuePolicy:
        cbool delay_timed_out
        Nanos timeout_ns
        cbool timeout_override
        uint32_t requests_max

    cdef cppclass TritonBatching:
        cbool dynamic
        vector[uint32_t] preferred_rows
        Nanos queue_delay_max_ns
        cbool preserve_ordering
        vector[TritonQueuePolicy] levels
        uint32_t default_level

    cdef cppclass LevelPolicy:
        Nanos slo_ns
        cbool best_effort
        double attainment

    cdef cppclass ModelPolicy:
        cbool in_use
        cbool merge
        uint32_t rows_max
        vector[uint32_t] preferred_rows
        vector[uint32_t] mandatory_rows
        Nanos queue_delay_max_ns
        uint32_t priority_levels
        uint32_t default_priority
        Nanos slo_ns
        vector[LevelPolicy] levels
        double attainment
        cbool load_aware
        double value
        Nanos aging_ns
        uint64_t queue_requests_max
        uint64_t queue_bytes_max
        Nanos queue_age_max_ns
        uint32_t staged_batches_max
        cbool idempotent
        cbool cancellable
        uint32_t direct_max
        Nanos sequence_idle_ns
        cbool admitting
        uint32_t hold_requests
        shared_ptr[TritonBatching] triton

    cdef cppclass BatchSizeStats:
        uint32_t rows
        uint64_t batches
        uint64_t backend_ns

    cdef cppclass ModelStats:
        uint64_t rows, batches, completed, completed_ns, failed, failed_ns, rejected, rejected_ns
        uint64_t cancelled, cancelled_ns, queue_ns, backend_ns
        Nanos last_answer
        vector[BatchSizeStats] batch_sizes

    cdef struct IgnoredTimes:
        uint64_t backward, zero, too_long, prior

    cdef cppclass LatencyStatus:
        cbool known
        uint64_t observations
        Nanos alpha_ns
        Nanos beta_ns
        double margin
        double error_mean
        double beyond_margin
        uint32_t rows_target
        double rate_per_s
        IgnoredTimes ignored
        vector[BatchSizeStats] sizes

    cdef enum: kDevicesMax

    cdef cppclass DeviceMemory:
        cbool known
        cbool fixed
        uint64_t free_bytes
        uint64_t total_bytes
        uint64_t headroom_bytes
        Nanos measured_at
        uint64_t own_bytes
        Nanos own_measured_at
        uint64_t loads

    cdef cppclass MemoryStatus:
        cbool known
        cbool confirmed
        double base_bytes
        double bytes_per_row
        uint64_t samples
        double error
        uint32_t rows_high
        uint32_t rows_limit
        uint32_t rows_cap
        uint64_t added_bytes
        uint64_t out_of_memory

    cdef cppclass DeviceStatus:
        cbool seen
        DeviceMemory memory
        uint64_t reserved_bytes

    cdef cppclass CppEngine "infersched::engine::Engine":
        ModelStats model_stats(uint32_t model) except +
        LatencyStatus latency_status(uint32_t model, uint32_t backend) except +
        MemoryStatus memory_status(uint32_t model, uint32_t device) except +
        DeviceStatus device_status(uint32_t device) except +

    cdef enum: kOwnExecutors

    cdef cppclass Placement:
        uint32_t backend
        uint32_t instances
        uint32_t executor_group
        cbool ready
        vector[uint32_t] devices
        uint32_t device_instances

    cdef cppclass QueueStatus:
        uint64_t requests
        uint64_t rows
        uint64_t bytes
        Nanos oldest_arrival
        uint32_t inflight_batches
        cbool merging


cdef extern from "gateway/gateway.h" namespace "infersched::gateway" nogil:
    cdef enum class BackendState(uint8_t):
        kUnspecified

    cdef cppclass BackendConfig:
        uint32_t index
        string address
        uint32_t connections
        BackendState state
        Compression compression
        cbool encrypted
        string shared_region

    cdef cppclass LatencyPrior:
        uint32_t backend
        uint32_t rows
        Nanos mean_ns
        uint64_t batches

    cdef cppclass MemoryPrior:
        uint32_t backend
        double base_bytes
        double bytes_per_row
        uint32_t rows_high
        cbool fixed

    cdef cppclass ModelConfig:
        uint32_t index
        cbool is_default_version
        ModelSchema schema
        ModelPolicy policy
        vector[string] key_headers
        vector[Placement] placements
        vector[LatencyPrior] priors
        vector[MemoryPrior] memory_priors

    cdef cppclass Tenant:
        string name
        double weight

    cdef cppclass Limits:
        uint64_t message_bytes_max
        uint64_t host_bytes_max
        uint32_t connections_max
        uint32_t streams_per_connection_max
        vector[string] forward_metadata
        Compression response_compression
        string tenant_key
        vector[Tenant] tenants

    cdef cppclass SharedMemoryRegion:
        string name
        vector[uint32_t] backends

    cdef cppclass LoadableModel:
        string name
        Nanos load_ns
        Nanos ready_at
        string error
        uint64_t need_bytes
        uint64_t free_bytes

    cdef cppclass WantedState:
        uint64_t generation
        vector[shared_ptr[ModelConfig]] models
        vector[BackendConfig] backends
        vector[SharedMemoryRegion] regions
        vector[LoadableModel] loadable
        Limits limits

    cdef enum class NoticeKind "infersched::gateway::Notice::Kind"(uint8_t):
        kBackendConnection
        kBackendLeaving
        kMergingSwitchedOff
        kDrained
        kSharedMemoryLost
        kModelWanted

    cdef cppclass SharedMemoryStatus:
        uint64_t used_bytes
        uint64_t backed_bytes
        uint64_t quarantined_calls
        uint64_t calls

    cdef cppclass Notice:
        NoticeKind kind
        uint32_t backend
        uint32_t model
        cbool connected
        uint64_t unanswered
        string reason

    cdef cppclass BackendStatus:
        uint32_t index
        uint32_t connections_open
        uint32_t connections_wanted
        uint32_t inflight_batches
        uint64_t inflight_rows
        BackendState state
        string address

    cdef cppclass BatchStatus:
        uint32_t model
        uint32_t backend
        uint32_t requests
        uint32_t rows
        Nanos age_ns
        bint memory_limited

    cdef cppclass LoadingStatus:
        string model
        uint32_t requests
        uint64_t bytes
        Nanos oldest_arrival

    cdef cppclass CppGateway "infersched::gateway::Gateway":
        CppGateway(CountersPage* page) except +
        string apply(const WantedState& wanted, Nanos now) except +
        void set_device(uint32_t device, const DeviceMemory& memory, Nanos now)
        void drain(Nanos deadline, Nanos now) except +
        cbool take_notice(Notice* notice)
        ConnectionId client_connected(const string& peer_address, Nanos now) except +
        ConnectionId backend_connected(uint32_t backend, const string& address, Nanos now) except +
        ConnectionId cold_connected(Nanos now) except +
        void received(ConnectionId connection, Span data, Nanos now) except +
        Space receive_space(ConnectionId connection)
        void connection_lost(ConnectionId connection, const string& reason, Nanos now) except +
        cbool turn(Nanos now) except +
        Nanos next_wake()
        Nanos gather_ns(Nanos started, Nanos now)
        void take_dirty(vector[ConnectionId]* connections) except +
        void take_closing(vector[ConnectionId]* connections) except +
        void take_retired(vector[ConnectionId]* connections) except +
        cbool wants_turn() except +
        void retire(ConnectionId connection)
        void pull(ConnectionId connection, size_t bytes_max, vector[Slice]* out) except +
        cbool wants_read(ConnectionId connection)
        uint64_t generation()
        cbool draining()
        vector[BackendStatus] backends() except +
        vector[BatchStatus] batches(Nanos now) except +
        QueueStatus queue_status(uint32_t model)
        vector[uint32_t] models() except +
        vector[uint32_t] placements(uint32_t model) except +
        vector[uint32_t] devices(uint32_t model) except +
        uint64_t host_bytes()
        uint32_t client_connections()
        SharedMemoryStatus shared_memory()
        vector[LoadingStatus] loading() except +
        const CppEngine& scheduler()
