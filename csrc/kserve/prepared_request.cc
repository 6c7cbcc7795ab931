#include "kserve/prepared_request.h"

#include <utility>

namespace infersched::kserve {

namespace {
constexpr std::uint32_t kElementsKept = 16;
}  // namespace

PreparedRequest::State* RequestAccess::take() { return list().take(); }

void RequestAccess::give(PreparedRequest::State* state) { list().give(state); }

// Never destroyed: requests may outlive the statics of their thread.
FreeList<PreparedRequest::State, RequestAccess::kKept>& RequestAccess::list() {
    static thread_local auto* const free_requests = new FreeList<PreparedRequest::State, kKept>();
    return *free_requests;
}

void PreparedRequest::State::recycle() {
    message = BufferRef();
    converted = BufferRef();
    signature.reset();
    trimmed = false;
    sequence_text = {};
    if (!regions.empty()) regions = {};
    inputs.clear_beyond(kElementsKept);
    outputs.clear_beyond(kElementsKept);
    consumed_fields.clear_beyond(kElementsKept);
}

PreparedRequest::PreparedRequest() = default;

PreparedRequest::~PreparedRequest() {
    if (state_ != nullptr) RequestAccess::give(state_);
}

PreparedRequest::PreparedRequest(PreparedRequest&& other) noexcept
    : state_(std::exchange(other.state_, nullptr)) {}

PreparedRequest& PreparedRequest::operator=(PreparedRequest&& other) noexcept {
    std::swap(state_, other.state_);
    return *this;
}

std::uint32_t PreparedRequest::rows() const { return state_->rows; }

std::uint64_t PreparedRequest::row_bytes() const { return state_->row_bytes; }

std::size_t PreparedRequest::bytes() const {
    const std::size_t converted = state_->converted ? state_->converted->size() : 0;
    return sizeof(State) + state_->message->size() + converted;
}

bool PreparedRequest::mergeable() const { return state_->mergeable; }

const SchedulingParameters& PreparedRequest::scheduling() const { return state_->scheduling; }

const SignatureRef& PreparedRequest::signature() const { return state_->signature; }

std::string_view PreparedRequest::id() const { return state_->id; }
std::string_view PreparedRequest::whole_id() const { return state_->whole_id; }

std::string_view PreparedRequest::sequence_text() const { return state_->sequence_text; }

const std::vector<std::string_view>& PreparedRequest::regions() const { return state_->regions; }

}  // namespace infersched::kserve
