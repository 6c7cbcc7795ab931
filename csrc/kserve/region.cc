#include "kserve/region.h"

#include <string>

#include "kserve/parameter.h"
#include "kserve/request_fault.h"

namespace infersched::kserve {

namespace {

constexpr std::string_view kRegion = "shared_memory_region";
constexpr std::string_view kOffset = "shared_memory_offset";
constexpr std::string_view kByteSize = "shared_memory_byte_size";

bool has_region_parameter(const RequestScan& scan, Range parameters) {
    for (std::uint32_t i = 0; i < parameters.count; ++i) {
        const std::string_view key = scan.tensor_parameters[parameters.first + i].key;
        if (key == kRegion || key == kOffset || key == kByteSize) return true;
    }
    return false;
}

Status examine_kind(const Parameter& parameter, ParameterKind wanted, std::string_view name) {
    if (parameter.kind == wanted) return Status();
    return invalid("invalid value type for " + quoted(parameter.key) + " parameter for tensor " +
                   quoted(name) + ", expected " +
                   (wanted == ParameterKind::kString ? "string_param." : "int64_param."));
}

// A place inside a region is an integer and needs the region.
Status examine_place(const Parameter* place, bool has_region, std::string_view name) {
    if (place == nullptr) return Status();
    if (has_region) return examine_kind(*place, ParameterKind::kInt64, name);
    return invalid(quoted(place->key) + " can not be specified without " + quoted(kRegion) +
                   " parameter for tensor " + quoted(name));
}

}  // namespace

bool uses_shared_memory(const RequestScan& scan) {
    if (scan.tensor_parameters.empty()) return false;
    for (const ScannedInput& input : scan.inputs) {
        if (has_region_parameter(scan, input.parameters)) return true;
    }
    for (const ScannedOutput& output : scan.outputs) {
        if (has_region_parameter(scan, output.parameters)) return true;
    }
    return false;
}

Status read_region(const RequestScan& scan, std::string_view name, Range parameters,
                   RegionUse* region) {
    *region = RegionUse();
    if (parameters.count == 0) return Status();
    const Parameter* first = scan.tensor_parameters.data() + parameters.first;
    Status status;
    const Parameter* found = find_parameter(first, parameters.count, kRegion);
    if (found != nullptr) {
        status = examine_kind(*found, ParameterKind::kString, name);
        region->used = true;
        region->name = found->text;
    }
    const Parameter* byte_size = find_parameter(first, parameters.count, kByteSize);
    if (status.ok()) {
        status =
            examine_place(find_parameter(first, parameters.count, kOffset), region->used, name);
    }
    if (status.ok()) status = examine_place(byte_size, region->used, name);
    if (status.ok() && region->used && byte_size == nullptr) {
        return invalid(quoted(kByteSize) + " must be specified along with " + quoted(kRegion) +
                       " parameter for tensor " + quoted(name));
    }
    return status;
}

}  // namespace infersched::kserve
