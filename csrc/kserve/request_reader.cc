// From the bytes of a ModelInferRequest to a PreparedRequest.
#include <algorithm>
#include <charconv>

#include "kserve/prepared_request.h"
#include "kserve/region.h"
#include "kserve/request_check.h"
#include "kserve/request_scan.h"
#include "kserve/signature.h"
#include "kserve/utf8.h"
#include "kserve/wire_reader.h"

namespace infersched::kserve {

namespace {

Status overfull_error(std::string_view id) {
    return Status::error(
        StatusCode::kInvalidArgument,
        request_prefix(id) + "request has too many inputs, outputs, dimensions or parameters");
}

bool is_trimmed(const RequestAccess::State& state) {
    for (const Trim& trim : state.signature->trims) {
        const std::uint32_t length = state.inputs[trim.input].length;
        if (state.signature->inputs[trim.input].layout->length != length) return true;
    }
    return false;
}

// Whether Triton's view of the request, in which it is fine, is that of a request of zero rows.
// Negative dimensions it takes for huge ones, which end the process of a python model.
bool has_zero_rows(const RequestScan& scan, const ModelSchema& schema) {
    if (schema.max_batch_size == 0) return false;
    for (const std::int64_t dim : scan.dims) {
        if (dim < 0) return false;
    }
    for (const ScannedInput& input : scan.inputs) {
        if (input.dims.count != 0 && scan.dims[input.dims.first] == 0) return true;
    }
    return false;
}

}  // namespace

struct RequestReader::Scratch {
    RequestScan scan;
    CheckedRequest checked;

    // A request that check_request doubted: refused, or accepted to be forwarded alone.
    Status resolve_doubt(const ModelSchema& schema) {
        if (scan.overfull) return overfull_error(scan.id);
        const std::int64_t rows_max = checked.mergeable ? schema.rows_max : schema.max_batch_size;
        checked.converted = BufferRef();
        Status status = explain_fault(scan, schema, rows_max, checked.converted_bytes_max);
        if (!status.ok()) return status;
        if (!uses_shared_memory(scan) && !has_zero_rows(scan, schema)) {
            return Status::error(
                StatusCode::kInvalidArgument,
                request_prefix(scan.id) + "tensor sizes exceed what can be addressed");
        }
        checked.mergeable = false;
        if (!uses_shared_memory(scan)) checked.rows = 1;
        return status;
    }

    std::string_view sequence_text(PreparedRequest::State* state) const {
        const Parameter& id = *checked.sequence_id;
        if (id.kind == ParameterKind::kString) return until_nul(id.text);
        char* begin = state->sequence_digits;
        char* end = std::to_chars(begin, begin + sizeof state->sequence_digits, id.bits).ptr;
        return {begin, static_cast<std::size_t>(end - begin)};
    }

    void fill(const BufferRef& message, PreparedRequest::State* state) {
        state->message = message;
        state->converted = std::move(checked.converted);
        state->scheduling = checked.scheduling;
        state->id = scan.id;
        state->whole_id = scan.whole_id;
        state->rows = checked.rows;
        state->mergeable = checked.mergeable;
        if (checked.sequence_id != nullptr) state->sequence_text = sequence_text(state);
        for (const std::string_view region : checked.regions) state->regions.push_back(region);
        for (const Span& field : scan.consumed_fields) state->consumed_fields.push_back(field);
        if (!checked.mergeable) return;
        for (const CheckedInput& input : checked.inputs) {
            state->inputs.push_back({input.data, RowCursor(), input.typed, input.padding.length});
        }
        for (const std::uint32_t output : checked.outputs) state->outputs.push_back(output);
    }
};

RequestReader::RequestReader(SignatureTable* signatures)
    : signatures_(signatures), scratch_(std::make_unique<Scratch>()) {}

RequestReader::~RequestReader() = default;

bool RequestReader::decodes(Span message) {
    return scan_request(message, &scratch_->scan) == ScanResult::kOk;
}

std::int64_t RequestReader::decoded_timeout_us() const {
    std::int64_t timeout_us = 0;
    for (const Parameter& parameter : scratch_->scan.parameters) {
        if (parameter.key == "timeout" && parameter.kind == ParameterKind::kInt64)
            timeout_us = std::max<std::int64_t>(static_cast<std::int64_t>(parameter.bits), 0);
    }
    return timeout_us;
}

Status RequestReader::prepare(const BufferRef& message, const ModelSchema& schema,
                              std::string_view metadata, PreparedRequest* request,
                              std::size_t converted_bytes_max) {
    RequestScan& scan = scratch_->scan;
    CheckedRequest& checked = scratch_->checked;
    if (scan_request(message.span(), &scan) != ScanResult::kOk) {
        return Status::error(StatusCode::kInternal, "Unable to parse request");
    }
    checked.converted_bytes_max = converted_bytes_max;
    if (!check_request(scan, schema, &checked)) {
        Status status = scratch_->resolve_doubt(schema);
        if (!status.ok()) return status;
    }
    PreparedRequest fresh;
    fresh.state_ = RequestAccess::take();
    scratch_->fill(message, fresh.state_);
    fresh.state_->signature = signatures_->state_->intern(scan, schema, checked, metadata);
    fresh.state_->row_bytes = checked.mergeable ? fresh.state_->signature->row_bytes
                                                : lone_row_bytes(scan, schema, checked);
    if (checked.padded) fresh.state_->trimmed = is_trimmed(*fresh.state_);
    *request = std::move(fresh);
    return Status();
}

bool peek_model(Span message, ModelName* name) {
    *name = ModelName();
    WireReader reader(message);
    while (!reader.done()) {
        std::uint32_t tag = 0;
        if (!reader.read_tag(&tag)) return false;
        const std::uint32_t field = tag >> 3;
        if ((tag & 7) != kLengthDelimited || field > 3) {
            if (!reader.skip(tag, 0)) return false;
            continue;
        }
        Span text;
        if (!reader.read_bytes(&text) || !is_utf8(text)) return false;
        std::string_view* target = field == 1   ? &name->whole_name
                                   : field == 2 ? &name->whole_version
                                                : &name->whole_id;
        *target = text.text();
    }
    name->name = until_nul(name->whole_name);
    name->version = until_nul(name->whole_version);
    name->version_cut = name->version.size() != name->whole_version.size();
    name->id = until_nul(name->whole_id);
    return true;
}

}  // namespace infersched::kserve
