// Entries of map<string, InferParameter>: reading one, the map's last-wins rule, canonical bytes.
#pragma once

#include <string>
#include <string_view>

#include "kserve/request_scan.h"

namespace infersched::kserve {

// `entry` is the body of one map entry; `depth` counts the messages around it.
[[nodiscard]] bool read_parameter(Span entry, int depth, Parameter* parameter);

// Keeps the last of equal keys and sorts by key. Returns how many are left.
std::uint32_t normalize_parameters(Parameter* parameters, std::uint32_t count);

// nullptr when there is none of this key.
const Parameter* find_parameter(const Parameter* parameters, std::uint32_t count,
                                std::string_view key);

// Appends the field `tag` holding `bytes`.
void append_field(std::string* out, std::uint8_t tag, std::string_view bytes);

// Appends the field `tag` holding this entry, one spelling for every equal entry.
void append_parameter(std::string* out, std::uint8_t tag, const Parameter& parameter);

}  // namespace infersched::kserve
