// The engine's reasons as gRPC statuses: code, text that clients know from Triton, typed details.
#include "base/error_details.h"
#include "gateway/requests.h"

namespace infersched::gateway {

namespace {

// Where the engine cannot tell yet how fast the queue drains.
constexpr Nanos kOverloadRetryNs = 100 * kMillisecond;
// Before this a retry after "draining" or "no backend" finds the same.
constexpr Nanos kUnavailableRetryNs = kSecond;

std::int64_t rounded_up_ms(Nanos duration) { return (duration + kMillisecond - 1) / kMillisecond; }

// An overload refusal: typed, with the time after which a retry may fit.
Status overload(StatusCode code, std::string message, ErrorDetails details, Nanos retry_after_ns) {
    if (retry_after_ns <= 0) retry_after_ns = kOverloadRetryNs;
    Status status = Status::error(code, std::move(message));
    status.retry_pushback_ms = rounded_up_ms(retry_after_ns);
    status.details = details.retry_info(retry_after_ns).serialise(status.code, status.message);
    return status;
}

Status overload(StatusCode code, std::string message, std::string_view reason,
                Nanos retry_after_ns) {
    return overload(code, std::move(message), ErrorDetails().error_info(reason), retry_after_ns);
}

std::string whole_ms(Nanos duration) { return std::to_string(duration / kMillisecond); }

// By the learned latencies it would come too late.
Status predicted_late(const engine::Admission& admission, const std::string& prefix) {
    const std::string predicted_ms = std::to_string(rounded_up_ms(admission.predicted_ns));
    const std::string budget_ms = whole_ms(admission.budget_ns);
    const auto info = ErrorDetails().error_info(
        "SLO_UNATTAINABLE", {{"predictedMs", predicted_ms}, {"budgetMs", budget_ms}});
    return overload(StatusCode::kResourceExhausted,
                    prefix + "the answer is predicted for " + predicted_ms +
                        " ms from now, later than the " + budget_ms + " ms that there are",
                    info, admission.retry_after_ns);
}

// It fits no device, not even alone.
Status too_large_for_devices(const std::string& prefix, std::uint64_t predicted_bytes,
                             std::uint64_t free_bytes, Nanos retry_after_ns) {
    const std::string predicted = std::to_string(predicted_bytes);
    const std::string free = std::to_string(free_bytes);
    const auto info = ErrorDetails().error_info(
        "DEVICE_MEMORY", {{"predictedBytes", predicted}, {"freeBytes", free}});
    std::string text = prefix + "the request does not fit the memory of the device, not even alone";
    if (predicted_bytes > 0)
        text += ": it takes " + predicted + " bytes, " + free + " bytes are free";
    return overload(StatusCode::kResourceExhausted, text, info, retry_after_ns);
}

Status model_too_large(const std::string& prefix, const LoadableModel& model,
                       Nanos retry_after_ns) {
    const std::string needed = std::to_string(model.need_bytes);
    const std::string free = std::to_string(model.free_bytes);
    const auto info = ErrorDetails().error_info("DEVICE_MEMORY",
                                                {{"predictedBytes", needed}, {"freeBytes", free}});
    return overload(StatusCode::kResourceExhausted,
                    prefix + "no device has room for model '" + model.name + "': it takes " +
                        needed + " bytes, " + free + " bytes are free",
                    info, retry_after_ns);
}

Status over_quota(const std::string& prefix, std::string_view tenant, Nanos retry_after_ns) {
    std::string subject = "tenant:";
    subject.append(tenant);
    const auto details = ErrorDetails()
                             .error_info("TENANT_QUOTA")
                             .quota_failure(subject, "over its share of device time");
    return overload(StatusCode::kResourceExhausted,
                    prefix + "the tenant is over its share of device time", details,
                    retry_after_ns);
}

Status expired(StatusCode code, LateBy late_by, std::string_view reason, std::string_view key,
               const std::string& duration_ms, Nanos retry_after_ns = 0) {
    Status status = Status::error(code, late_text(late_by));
    ErrorDetails details = ErrorDetails().error_info(reason, {{key, duration_ms}});
    if (retry_after_ns > 0) details.retry_info(retry_after_ns);
    status.details = details.serialise(status.code, status.message);
    return status;
}

// The load made it late. Of a call that has time left for all of it again the client's library is
// told, too: some of them (grpc-java) try again whatever comes with a pushback, whether or not they
// may for its code, and what is left of the others would only be waited for.
Status given_up(const engine::Action& action, const RequestRecord& request, LateBy late_by) {
    Status status = expired(action.code, late_by, "EXPIRED_IN_QUEUE", "queuedMs",
                            whole_ms(action.queued_ns), action.retry_after_ns);
    const Nanos again = add_saturating(action.queued_ns, action.retry_after_ns);
    const bool has_time = add_saturating(action.at, again) <= request.call_deadline;
    if (action.retry_after_ns > 0 && has_time && request.client_stream == 0)
        status.retry_pushback_ms = rounded_up_ms(action.retry_after_ns);
    return status;
}

// Only a new start helps: who repeats the request gets the same again.
Status sequence_lost(const std::string& prefix, std::string_view model) {
    std::string text = prefix + "the backend that had the sequence for model '";
    text.append(model).append("' is gone; start the sequence again");
    Status status = Status::error(StatusCode::kAborted, std::move(text));
    status.details =
        ErrorDetails().error_info("SEQUENCE_LOST").serialise(status.code, status.message);
    return status;
}

// As Triton says it of a model that it knows and does not serve (any more).
Status unloading(std::string_view model) {
    std::string text = "Request for unknown model: '";
    text.append(model).append("' has no available versions");
    return Status::error(StatusCode::kNotFound, std::move(text));
}

// `code` other than kOk: what Triton's batcher gives instead of ours.
Status for_reason(engine::Reason reason, std::string_view request_id, std::string_view model,
                  Nanos retry_after_ns, StatusCode code = StatusCode::kOk) {
    const std::string prefix = request_id_prefix(request_id);
    switch (reason) {
        case engine::Reason::kQueueFull:
        case engine::Reason::kQueueAge:
            if (code == StatusCode::kOk) code = StatusCode::kResourceExhausted;
            return overload(code, prefix + "Exceeds maximum queue size", "QUEUE_FULL",
                            retry_after_ns);
        case engine::Reason::kHostMemory:
            return overload(StatusCode::kResourceExhausted,
                            prefix + "request bytes held by the scheduler exceed its limit",
                            "HOST_MEMORY", retry_after_ns);
        case engine::Reason::kPriorityShed:
            return overload(StatusCode::kResourceExhausted,
                            prefix + "overload leaves no room for this priority", "PRIORITY_SHED",
                            retry_after_ns);
        case engine::Reason::kModelShare:
            return overload(StatusCode::kResourceExhausted,
                            prefix + "overload leaves more room to model '" + std::string(model) +
                                "' than to those beside it",
                            "MODEL_SHARE", retry_after_ns);
        case engine::Reason::kDraining:
            return overload(StatusCode::kUnavailable, "the scheduler is draining", "DRAINING",
                            kUnavailableRetryNs);
        case engine::Reason::kNoBackend:
            return overload(StatusCode::kUnavailable, "no ready backend serves the model",
                            "NO_BACKEND", kUnavailableRetryNs);
        case engine::Reason::kSequenceLost:
            return sequence_lost(prefix, model);
        case engine::Reason::kUnloading:
            return unloading(model);
        default:
            return Status::error(StatusCode::kInternal, "request failed");
    }
}

}  // namespace

std::string late_text(LateBy late_by) {
    return late_by == LateBy::kCall ? "Deadline Exceeded" : "Request timeout expired";
}

std::string request_id_prefix(std::string_view request_id) {
    std::string prefix = "[request id: ";
    prefix.append(request_id.empty() ? "<id_unknown>" : request_id).append("] ");
    return prefix;
}

Status refusal_status(const engine::Admission& admission, std::string_view request_id,
                      std::string_view model, std::string_view tenant, LateBy late_by) {
    switch (admission.reason) {
        case engine::Reason::kDeadlineInfeasible:
            return expired(StatusCode::kDeadlineExceeded, late_by, "DEADLINE_INFEASIBLE", "floorMs",
                           std::to_string(rounded_up_ms(admission.predicted_ns)));
        case engine::Reason::kPredictedLate:
            return predicted_late(admission, request_id_prefix(request_id));
        case engine::Reason::kTenantQuota:
            return over_quota(request_id_prefix(request_id), tenant, admission.retry_after_ns);
        case engine::Reason::kDeviceMemory:
            return too_large_for_devices(request_id_prefix(request_id), admission.predicted_bytes,
                                         admission.free_bytes, admission.retry_after_ns);
        default:
            break;
    }
    return for_reason(admission.reason, request_id, model, admission.retry_after_ns,
                      admission.code);
}

Status loading_status(std::string_view request_id, std::string_view model, Nanos predicted_ns,
                      Nanos budget_ns) {
    const std::string predicted_ms = std::to_string(rounded_up_ms(predicted_ns));
    const std::string budget_ms = whole_ms(budget_ns);
    std::string text = request_id_prefix(request_id) + "model '";
    text.append(model).append("' is being loaded: it is predicted to be ready ");
    text += predicted_ms + " ms from now, later than the " + budget_ms + " ms that there are";
    const auto info = ErrorDetails().error_info(
        "MODEL_LOADING", {{"loadMs", predicted_ms}, {"budgetMs", budget_ms}});
    return overload(StatusCode::kUnavailable, std::move(text), info, predicted_ns);
}

Status load_failed_status(std::string_view request_id, const LoadableModel& model, Nanos now) {
    const std::string prefix = request_id_prefix(request_id);
    const Nanos retry_after_ns = model.ready_at > now ? model.ready_at - now : kUnavailableRetryNs;
    if (model.need_bytes > 0) return model_too_large(prefix, model, retry_after_ns);
    return overload(StatusCode::kUnavailable,
                    prefix + "model '" + model.name + "' cannot be loaded: " + model.error,
                    "MODEL_LOAD_FAILED", retry_after_ns);
}

Status expired_in_queue_status(Nanos queued_ns, LateBy late_by) {
    return expired(StatusCode::kDeadlineExceeded, late_by, "EXPIRED_IN_QUEUE", "queuedMs",
                   whole_ms(queued_ns));
}

Status answer_status(const engine::Action& action, const RequestRecord& request,
                     std::string_view model) {
    // Triton's batcher ends what has waited too long in its queue, with a code of its own.
    const LateBy late_by =
        action.code == StatusCode::kDeadlineExceeded ? request.late_by : LateBy::kBudget;
    switch (action.reason) {
        case engine::Reason::kExpiredInQueue:
            return given_up(action, request, late_by);
        case engine::Reason::kExpiredInFlight:
            return expired(action.code, late_by, "EXPIRED_IN_FLIGHT", "elapsedMs",
                           whole_ms(action.queued_ns));
        case engine::Reason::kDeviceMemory:
            return too_large_for_devices(request_id_prefix(request.prepared.id()),
                                         action.predicted_bytes, action.free_bytes,
                                         kUnavailableRetryNs);
        case engine::Reason::kBackendError:
            if (request.failure && request.failure->code == action.code) return *request.failure;
            // Nothing ran, wherever it was sent.
            if (action.code == StatusCode::kUnavailable)
                return for_reason(engine::Reason::kNoBackend, request.prepared.id(), model, 0);
            return Status::error(action.code, "the backend failed the request");
        default:
            return for_reason(action.reason, request.prepared.id(), model, 0);
    }
}

}  // namespace infersched::gateway
