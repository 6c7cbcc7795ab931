// libFuzzer's hooks of a fuzzer whose inputs are scripts: for its one file to include.
#pragma once

#include "frames.h"

namespace infersched::fuzz {

FrameMutator& mutator();  // each fuzzer's own

}  // namespace infersched::fuzz

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t size_max, unsigned seed) {
    return infersched::fuzz::mutator().mutate(data, size, size_max, seed);
}

extern "C" std::size_t LLVMFuzzerCustomCrossOver(const std::uint8_t* one, std::size_t one_size,
                                                 const std::uint8_t* other, std::size_t other_size,
                                                 std::uint8_t* out, std::size_t size_max,
                                                 unsigned seed) {
    return infersched::fuzz::mutator().cross({one, one_size}, {other, other_size}, out, size_max,
                                             seed);
}
