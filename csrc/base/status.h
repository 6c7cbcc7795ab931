// gRPC status codes and the error value that rooms hand to each other instead of throwing.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

namespace infersched {

enum class StatusCode : std::uint8_t {
    kOk = 0,
    kCancelled = 1,
    kUnknown = 2,
    kInvalidArgument = 3,
    kDeadlineExceeded = 4,
    kNotFound = 5,
    kAlreadyExists = 6,
    kPermissionDenied = 7,
    kResourceExhausted = 8,
    kFailedPrecondition = 9,
    kAborted = 10,
    kOutOfRange = 11,
    kUnimplemented = 12,
    kInternal = 13,
    kUnavailable = 14,
    kDataLoss = 15,
    kUnauthenticated = 16,
};

struct Status {
    StatusCode code = StatusCode::kOk;
    std::string message;
    // A serialised google.rpc.Status for `grpc-status-details-bin`, or empty.
    std::string details;
    // `grpc-retry-pushback-ms`; negative = not sent.
    std::int64_t retry_pushback_ms = -1;

    bool ok() const { return code == StatusCode::kOk; }

    static Status error(StatusCode code, std::string message) {
        return {code, std::move(message), {}, -1};
    }
};

}  // namespace infersched
