#include "gateway/out_of_memory.h"

#include <algorithm>
#include <string>
#include <string_view>

namespace infersched::gateway {
namespace {

// Parts of the texts, in lower case.
constexpr std::string_view kTexts[] = {
    // PyTorch: "CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; ...", "HIP out of memory",
    // "torch.cuda.OutOfMemoryError", "torch.OutOfMemoryError".
    "cuda out of memory",
    "hip out of memory",
    "outofmemoryerror",
    // CUDA and its libraries: "CUDA error: out of memory", "CUDA failure 2: out of memory",
    // "cudaMalloc failed: out of memory", "Cuda Runtime (out of memory)".
    "cuda error: out of memory",
    "cuda error 2: out of memory",
    "cuda failure 2: out of memory",
    "cudamalloc failed: out of memory",
    "cuda runtime (out of memory)",
    "cuda_error_out_of_memory",
    "cudaerrormemoryallocation",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    // ONNX Runtime's arenas.
    "failed to allocate memory for requested buffer of size",
    "is smaller than requested bytes of",
    // TensorRT: "Requested amount of GPU memory (123 bytes) could not be allocated. There may not
    // be enough free memory ...", "Error Code 2: OutOfMemory (no further information)".
    "requested amount of gpu memory",
    "error code 2: outofmemory",
    "] outofmemory (",
    // Triton's own pools: "Failed to allocate CUDA memory with byte size 123 on GPU 0: ...".
    "failed to allocate cuda memory with byte size",
    "cnmem_status_out_of_memory",
    // TensorFlow and XLA: "OOM when allocating tensor with shape[...", "RESOURCE_EXHAUSTED: Out of
    // memory while trying to allocate 123 bytes".
    "oom when allocating tensor",
    "out of memory while trying to allocate",
    "out of memory allocating",
};

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
    return std::any_of(std::begin(kTexts), std::end(kTexts),
                       [&](std::string_view part) { return text.find(part) != std::string::npos; });
}

}  // namespace infersched::gateway
