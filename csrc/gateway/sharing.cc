// Large tensors go to a backend of this host, and come back, through shared memory.
//
// Requests are received into shared blocks (base/shared_blocks.h) already; what lies elsewhere, or
// is gathered from several requests, is copied there. The backend answers into blocks that were
// reserved for its outputs, and the client is answered from them. A block has one owner at a time:
// it is held until the backend has said that the call is over, whatever became of the client.
#include <algorithm>
#include <cstring>

#include "base/shared_blocks.h"
#include "gateway/state.h"
#include "gateway/triton_texts.h"

namespace infersched::gateway {

namespace {

// From when a backend has been seen without the region of a lost call: for an old process that may
// end more slowly than its successor starts.
constexpr Nanos kQuarantineNs = 30 * kSecond;
// From when its backend is not in the configuration: we do not hear of its regions any more.
constexpr Nanos kQuarantineGoneNs = 600 * kSecond;

bool contains(std::string_view text, std::string_view part) {
    return text.find(part) != std::string_view::npos;
}

// Whether a call that ended so is surely over at the backend, too. What is cancelled, is out of
// time or loses its connection may run on.
bool is_over(const http2::Event& event, const ModelConfig* model) {
    if (event.nothing_ran) return true;
    if (!event.answered) return false;
    if (event.status.ok()) return true;
    if (model == nullptr) return false;
    // The word of a proxy on this host, such as "upstream request timeout": Triton may run on.
    if (event.status.message.rfind("upstream ", 0) == 0) return false;
    return event.status.code != StatusCode::kCancelled &&
           event.status.code != StatusCode::kDeadlineExceeded &&
           triton_says(event.status, model->schema).word != TritonWord::kCutOff;
}

bool lacks_region(const Status& status, const std::string& region) {
    return status.code == StatusCode::kNotFound &&
           contains(status.message, "shared memory region") && contains(status.message, region);
}

bool lacks_room(const Status& status) {
    return status.code == StatusCode::kInternal &&
           contains(status.message, "shared memory size specified with the request for output");
}

bool is_aligned(const std::uint8_t* data) {
    return shared_blocks().offset_of(data) % kSharedAlignBytes == 0;
}

BufferRef shared_buffer(std::size_t size) {
    BufferRef block = BufferRef::make();
    if (!block->share(size) || block->extend(size) == nullptr) return BufferRef();
    return block;
}

// Whether an output of the model may be large, whatever the request asks for.
bool has_large_output(const kserve::ModelSchema& schema, std::uint32_t rows) {
    return std::any_of(schema.outputs.begin(), schema.outputs.end(), [rows](const auto& output) {
        return kserve::fixed_bytes(output, rows) >= kserve::kSharedTensorBytesMin;
    });
}

}  // namespace

// What of the batch of `merge_scratch` goes through shared memory; null: nothing.
std::unique_ptr<SharedBatch> Gateway::State::share_tensors(const engine::Action& action,
                                                           kserve::SharedTensors* tensors) {
    const Backend& backend = backends[action.backend];
    const std::string& region = backend.config.shared_region;
    const ModelConfig* model = catalog.at(action.model);
    if (region.empty() || region == backend.lost_region || model == nullptr) return nullptr;
    const kserve::PreparedRequest& first = *merge_scratch.front().request;
    // What may be reset in the middle of its execution leaves us without knowing its end.
    if (!first.mergeable() || model->policy.cancellable) return nullptr;
    std::size_t bytes = 0;
    for (const kserve::RequestRows& part : merge_scratch) bytes += part.request->bytes();
    if (bytes < kserve::kSharedTensorBytesMin &&
        !has_large_output(model->schema, action.rows_padded))
        return nullptr;
    auto shared = std::make_unique<SharedBatch>();
    shared->address = backend.config.address;
    shared->region = region;
    tensors->region = region;
    share_inputs(action.rows_padded, shared.get(), tensors);
    // An output that does not fit its block costs another execution.
    if (model->policy.idempotent && wired_outputs.count(action.model) == 0)
        share_outputs(*model, action.rows_padded, shared.get(), tensors);
    if (shared->inputs.empty() && shared->outputs.empty()) return nullptr;
    budget.used += shared->charged;
    ++shared_calls;
    return shared;
}

void Gateway::State::share_inputs(std::uint32_t rows_padded, SharedBatch* shared,
                                  kserve::SharedTensors* tensors) {
    tensors->inputs.resize(kserve::input_count(*merge_scratch.front().request));
    for (std::size_t i = 0; i < tensors->inputs.size(); ++i) {
        Pieces bytes;
        kserve::append_input(merge_scratch.data(), merge_scratch.size(), rows_padded, i, &bytes);
        if (bytes.size() < kserve::kSharedTensorBytesMin) continue;
        const Span piece = bytes.piece(0);
        if (bytes.count() == 1 && shared_blocks().contains(piece.data) && is_aligned(piece.data)) {
            tensors->inputs[i] = {shared_blocks().offset_of(piece.data), piece.size};
            shared->inputs.push_back(bytes.owner(0));
            continue;
        }
        if (bytes.size() > budget.room() - shared->charged) continue;
        const BufferRef block = shared_buffer(bytes.size());
        if (!block) continue;
        std::uint8_t* at = block->data();
        for (std::size_t p = 0; p < bytes.count(); ++p) {
            std::memcpy(at, bytes.piece(p).data, bytes.piece(p).size);
            at += bytes.piece(p).size;
        }
        tensors->inputs[i] = {shared_blocks().offset_of(block->data()), block->size()};
        shared->charged += block->size();
        shared->inputs.push_back(block);
    }
}

void Gateway::State::share_outputs(const ModelConfig& model, std::uint32_t rows_padded,
                                   SharedBatch* shared, kserve::SharedTensors* tensors) {
    std::vector<std::uint64_t> sizes;
    kserve::predict_outputs(merge_scratch.data(), merge_scratch.size(), rows_padded, model.schema,
                            &sizes);
    for (std::size_t i = 0; i < sizes.size(); ++i) {
        if (sizes[i] == 0 || sizes[i] > budget.room() - shared->charged) continue;
        const BufferRef block = shared_buffer(sizes[i]);
        if (!block) continue;
        tensors->outputs.resize(sizes.size());
        tensors->outputs[i] = {shared_blocks().offset_of(block->data()), block->size()};
        shared->charged += block->size();
        shared->outputs.push_back({model.schema.outputs[i].name, block});
    }
}

// What was taken beyond the requests themselves is paid back.
void Gateway::State::uncharge(SharedBatch* shared) {
    budget.used -= shared->charged;
    shared->charged = 0;
}

// The backend, or the connection, has ended a call. False: the batch is sent again.
bool Gateway::State::end_shared_call(BatchRecord* batch, const http2::Event& event, Nanos now) {
    if (!is_over(event, catalog.at(batch->model))) {
        lose_shared_call(batch->backend, std::move(batch->shared), now);
        return true;
    }
    uncharge(batch->shared.get());
    batch->shared->inputs.clear();
    if (event.status.ok()) return true;
    if (lacks_region(event.status, batch->shared->region))
        lose_region(batch->backend, batch->shared->region);
    else if (lacks_room(event.status))
        wired_outputs.insert(batch->model);
    else
        return true;
    note_failure(*batch, event.status);
    engine.dispatch_failed(batch->handle, engine::FailureKind::kNothingRan, event.status.code, now);
    return false;
}

// The reply gets the outputs that it has in shared memory. False: they are not what the catalog
// says.
bool Gateway::State::place_outputs(const BatchRecord& batch, kserve::Reply* reply) {
    std::string error;
    for (const SharedBatch::Output& output : batch.shared->outputs) {
        if (reply->place(output.name, output.block, &error)) continue;
        wired_outputs.insert(batch.model);
        note_failure(batch, Status::error(StatusCode::kInternal, error));
        return false;
    }
    return true;
}

void Gateway::State::lose_shared_call(std::uint32_t index, std::unique_ptr<SharedBatch> shared,
                                      Nanos now) {
    uncharge(shared.get());  // what nobody can use is bounded by the segment
    const Nanos end = quarantine_end(*shared, now);
    // Another backend may have the number by now.
    if (backends[index].config.address == shared->address) lose_region(index, shared->region);
    quarantine.push_back({std::move(shared), end});
    quarantine_due = std::min(quarantine_due, end);
}

// A backend that is known by another region has the one of a lost call no more.
Nanos Gateway::State::quarantine_end(const SharedBatch& shared, Nanos now) const {
    Nanos end = now + kQuarantineGoneNs;
    for (const Backend& backend : backends) {
        if (!backend.in_use || backend.config.address != shared.address) continue;
        const std::string& region = backend.config.shared_region;
        end = region.empty() || region == shared.region ? kNever : now + kQuarantineNs;
    }
    return end;
}

// Large tensors go by the wire until the control plane has another region for us.
void Gateway::State::lose_region(std::uint32_t index, const std::string& region) {
    Backend& backend = backends[index];
    if (backend.lost_region == region) return;
    backend.lost_region = region;
    notices.push_back({Notice::Kind::kSharedMemoryLost, index, 0, false, 0, region});
}

// A control plane that still says a lost region has not heard of the loss.
void Gateway::State::date_quarantine(Nanos now) {
    for (std::uint32_t index = 0; index < backends.size(); ++index) {
        const Backend& backend = backends[index];
        const std::string& region = backend.config.shared_region;
        if (backend.in_use && !region.empty() && region == backend.lost_region)
            notices.push_back({Notice::Kind::kSharedMemoryLost, index, 0, false, 0, region});
    }
    for (Quarantined& entry : quarantine) {
        if (entry.release_at == kNever) entry.release_at = quarantine_end(*entry.shared, now);
        quarantine_due = std::min(quarantine_due, entry.release_at);
    }
}

void Gateway::State::release_quarantine(Nanos now) {
    const auto first =
        std::remove_if(quarantine.begin(), quarantine.end(),
                       [now](const Quarantined& entry) { return entry.release_at <= now; });
    quarantine.erase(first, quarantine.end());
    quarantine_due = kNever;
    for (const Quarantined& entry : quarantine)
        quarantine_due = std::min(quarantine_due, entry.release_at);
}

}  // namespace infersched::gateway
