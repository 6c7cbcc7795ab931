// What Triton itself says of requests that it did not execute, or not to their end.
//
// Texts are compared as a whole, names included: a model may say anything in its own errors, about
// other models too, and that is its answer.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/status.h"
#include "kserve/schema.h"

namespace infersched::gateway {

enum class TritonWord : std::uint8_t {
    kNone,     // none of Triton's own: the model's answer
    kLeaving,  // it leaves, or unloads the model: it denies it to everything new
    kQueue,    // its queue is full, or the request has waited there for too long
    kCutOff,   // a gRPC server that is shut down cuts off the calls that it has
};

struct TritonSays {
    TritonWord word = TritonWord::kNone;
    bool may_have_run = false;  // some of it: it is cut off, or a step of an ensemble is meant
};

TritonSays triton_says(const Status& status, const kserve::ModelSchema& model);
// The same of a message of a stream, which carries no code.
TritonSays triton_says(std::string_view text, const kserve::ModelSchema& model);

}  // namespace infersched::gateway
