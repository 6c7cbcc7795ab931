// Runs files through a fuzzer's entry without libFuzzer: what any compiler can build.
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

int main(int count, char** paths) {
    for (int i = 1; i < count; ++i) {
        std::ifstream file(paths[i], std::ios::binary);
        std::fprintf(stderr, "%s\n", paths[i]);
        const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
        // Exactly as large as the file, so that a sanitizer sees a read past its end.
        std::vector<std::uint8_t> exact(bytes.begin(), bytes.end());
        LLVMFuzzerTestOneInput(exact.data(), exact.size());
    }
    return 0;
}
