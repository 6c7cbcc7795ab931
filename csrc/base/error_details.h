// Writes the google.rpc.Status bytes that go out as `grpc-status-details-bin`.
//
//     status.details = ErrorDetails()
//                          .error_info("QUEUE_FULL", {{"model", name}})
//                          .retry_info(5 * kMillisecond)
//                          .serialise(status.code, status.message);
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

#include "base/status.h"
#include "base/time.h"

namespace infersched {

inline constexpr std::string_view kErrorDomain = "infersched";

class ErrorDetails {
  public:
    using Metadata = std::initializer_list<std::pair<std::string_view, std::string_view>>;

    // google.rpc.ErrorInfo in our domain.
    ErrorDetails& error_info(std::string_view reason, Metadata metadata = {});
    // google.rpc.RetryInfo; a negative delay counts as zero.
    ErrorDetails& retry_info(Nanos delay_ns);
    // google.rpc.QuotaFailure with one violation; `subject` is for example "tenant:acme".
    ErrorDetails& quota_failure(std::string_view subject, std::string_view description);
    // google.rpc.BadRequest with one field violation; `field` is a path in the request.
    ErrorDetails& bad_request(std::string_view field, std::string_view description);

    // The google.rpc.Status that carries what was added so far.
    std::string serialise(StatusCode code, std::string_view message) const;

  private:
    void add(std::string_view type, std::string_view value);

    std::string details_;  // field 3 of google.rpc.Status, repeated
};

}  // namespace infersched
