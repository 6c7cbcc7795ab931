// What Triton itself says of requests that it did not start to execute.
//
// Texts are compared as a whole, names included: a model may say anything in its own errors, about
// other models too, and that is its answer.
#pragma once

#include <string_view>

#include "base/status.h"
#include "kserve/schema.h"

namespace infersched::gateway {

// A Triton that is leaving, or unloads the model, finishes what runs and denies the model to
// everything new.
bool says_leaving(const Status& status, const kserve::ModelSchema& model);
// The same of a message of a stream, which carries no code.
bool says_leaving(std::string_view text, const kserve::ModelSchema& model);

// The limit of its own queue turned the request away.
bool says_queue_full(const Status& status);

// A gRPC server that is shut down cuts off the calls that it has: they may have run.
bool says_cut_off(const Status& status);

}  // namespace infersched::gateway
