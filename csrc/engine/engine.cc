#include "engine/engine.h"

#include "engine/archive.h"
#include "engine/core.h"

namespace infersched::engine {

struct Engine::State {
    explicit State(CountersPage* page) : core(page) {}
    Core core;
};

Engine::Engine(CountersPage* page) : state_(std::make_unique<State>(page)) {}
Engine::~Engine() = default;

void Engine::configure_model(std::uint32_t model, const ModelPolicy& policy,
                             const std::vector<Placement>& placements, Nanos now) {
    state_->core.configure_model(model, policy, placements, now);
}

void Engine::set_backend(std::uint32_t backend, bool available, Nanos now) {
    state_->core.set_backend(backend, available, now);
}

void Engine::set_tenants(const std::vector<double>& weights) { state_->core.set_tenants(weights); }

void Engine::set_draining(bool draining) { state_->core.draining = draining; }

Admission Engine::submit(const Request& request, Nanos now) {
    return state_->core.submit(request, now);
}

void Engine::cancel(RequestHandle request, Nanos now) { state_->core.cancel(request, now); }

void Engine::fail_all(Reason reason, Nanos now) { state_->core.fail_all(reason, now); }

void Engine::complete(BatchHandle batch, Nanos now) { state_->core.complete(batch, now); }

void Engine::dispatch_failed(BatchHandle batch, FailureKind kind, StatusCode code, Nanos now) {
    state_->core.dispatch_failed(batch, kind, code, now);
}

void Engine::end_path(BatchHandle batch, Nanos now) { state_->core.end_path(batch, now); }

void Engine::step(Nanos now) { state_->core.step(now); }

const std::vector<Action>& Engine::actions() const { return state_->core.actions; }

const std::vector<BatchMember>& Engine::members() const { return state_->core.members; }

void Engine::clear_actions() {
    state_->core.actions.clear();
    state_->core.members.clear();
}

QueueStatus Engine::queue_status(std::uint32_t index) const {
    return state_->core.queue_status(index);
}

ModelStats Engine::model_stats(std::uint32_t index) const {
    return state_->core.model_stats(index);
}

bool Engine::prime_latency(std::uint32_t model, std::uint32_t backend, std::uint32_t rows,
                           Nanos mean_ns, std::uint64_t count) {
    return state_->core.prime_latency(model, backend, rows, mean_ns, count);
}

LatencyStatus Engine::latency_status(std::uint32_t model, std::uint32_t backend) const {
    return state_->core.latency_status(model, backend);
}

void Engine::set_device(std::uint32_t device, const DeviceMemory& memory, Nanos now) {
    state_->core.set_device(device, memory, now);
}

bool Engine::prime_memory(std::uint32_t model, std::uint32_t device, double base_bytes,
                          double bytes_per_row, std::uint32_t rows_high, bool fixed) {
    return state_->core.prime_memory(model, device, base_bytes, bytes_per_row, rows_high, fixed);
}

MemoryStatus Engine::memory_status(std::uint32_t model, std::uint32_t device) const {
    return state_->core.memory_status(model, device);
}

DeviceStatus Engine::device_status(std::uint32_t device) const {
    return state_->core.device_status(device);
}

std::uint64_t Engine::requests_inflight() const { return state_->core.requests_inflight(); }

void Engine::check_invariants() const { state_->core.check_invariants(); }

bool Engine::needs_step() const { return state_->core.needs_step(); }

std::vector<std::uint8_t> Engine::save() const {
    ArchiveWriter writer;
    state_->core.archive(writer);
    return writer.take();
}

bool Engine::load(const std::vector<std::uint8_t>& state) {
    ArchiveReader reader(state);
    state_->core.archive(reader);
    return reader.complete();
}

}  // namespace infersched::engine
