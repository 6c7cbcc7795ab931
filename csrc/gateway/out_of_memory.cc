#include "gateway/out_of_memory.h"

#include <algorithm>
#include <string>
#include <string_view>

namespace infersched::gateway {
namespace {

// Parts of texts that say it by themselves, in lower case.
constexpr std::string_view kTexts[] = {
    // PyTorch: "CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; ...", "HIP out of memory",
    // "torch.cuda.OutOfMemoryError", "torch.OutOfMemoryError".
    "hip out of memory",
    "outofmemoryerror",
    // CUDA and its libraries, where they name the code only.
    "cuda_error_out_of_memory",
    "cudaerrormemoryallocation",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "device_allocation_failed",
    // ONNX Runtime's arenas.
    "failed to allocate memory for requested buffer of size",
    "is smaller than requested bytes of",
    // TensorRT: "Requested amount of GPU memory (123 bytes) could not be allocated. There may not
    // be enough free memory ...", "Error Code 2: OutOfMemory (no further information)", "User
    // allocator error allocating 123-byte buffer".
    "requested amount of gpu memory",
    "error code 2: outofmemory",
    "] outofmemory (",
    "user allocator error allocating",
    // Triton's own pools: "Failed to allocate CUDA memory with byte size 123 on GPU 0: ...".
    "failed to allocate cuda memory with byte size",
    "cnmem_status_out_of_memory",
    // TensorFlow and XLA: "OOM when allocating tensor with shape[...", "RESOURCE_EXHAUSTED: Out of
    // memory while trying to allocate 123 bytes".
    "oom when allocating tensor",
    "out of memory while trying to allocate",
    "out of memory allocating",
};
// Whoever else asks CUDA, HIP or an allocator of theirs passes their words on in one of many ways:
// "CUDA failure 2: out of memory", "Cuda Driver (out of memory)", "Cuda Error in allocate: 2 (out
// of memory)", "CUDA runtime error in ::cudaMallocAsync(...): out of memory". The host's memory
// runs out, too; that is not said with one of these words.
constexpr std::string_view kDevices[] = {"cuda", "cumem", "hip error", "hipmalloc",
                                         "gpu",  "rmm:",  "allocator"};

bool holds_one(const std::string& text, const std::string_view* begin,
               const std::string_view* end) {
    return std::any_of(begin, end,
                       [&](std::string_view part) { return text.find(part) != std::string::npos; });
}

}  // namespace

bool says_out_of_memory(const Status& status) {
    switch (status.code) {
        case StatusCode::kInternal:
        case StatusCode::kUnknown:
        case StatusCode::kResourceExhausted:
            break;
        default:
            return false;
    }
    std::string text = status.message;
    std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) {
        return static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
    });
    if (holds_one(text, std::begin(kTexts), std::end(kTexts))) return true;
    return text.find("out of memory") != std::string::npos &&
           holds_one(text, std::begin(kDevices), std::end(kDevices));
}

}  // namespace infersched::gateway
