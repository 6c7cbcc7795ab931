// Runs files, and mutants of them where the fuzzer has a mutator of its own, through its entry
// without libFuzzer: what any compiler can build.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <vector>

using Bytes = std::vector<std::uint8_t>;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
extern "C" __attribute__((weak)) std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data,
                                                                     std::size_t size,
                                                                     std::size_t size_max,
                                                                     unsigned seed);

// Stands in for libFuzzer's: the bytes backwards.
extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t) {
    std::reverse(data, data + size);
    return size;
}

namespace {

constexpr std::size_t kInputBytesMax = 4096;
constexpr unsigned kMutants = 10;

// From memory exactly as large, so that a sanitizer sees a read past its end.
void run(const Bytes& input) {
    const Bytes exact(input);
    LLVMFuzzerTestOneInput(exact.data(), exact.size());
}

void run_mutants(Bytes input) {
    for (unsigned seed = 0; seed < kMutants; ++seed) {
        const std::size_t size = std::min(input.size(), kInputBytesMax);
        input.resize(kInputBytesMax);
        input.resize(LLVMFuzzerCustomMutator(input.data(), size, kInputBytesMax, seed));
        run(input);
    }
}

}  // namespace

int main(int count, char** paths) {
    for (int i = 1; i < count; ++i) {
        std::ifstream file(paths[i], std::ios::binary);
        std::fprintf(stderr, "%s\n", paths[i]);
        const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
        const Bytes input(bytes.begin(), bytes.end());
        run(input);
        if (LLVMFuzzerCustomMutator != nullptr) run_mutants(input);
    }
    return 0;
}
