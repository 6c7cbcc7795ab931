#include "http2/memory.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace infersched::http2 {

namespace {

constexpr std::size_t kStepBytes = 32;
constexpr std::size_t kClasses = 17;  // blocks up to 512 bytes; larger ones are malloc's
constexpr std::size_t kKeptBytesMax = 512u << 10;  // of free blocks, a thread

// Before every block, keeping it aligned: its class, or kClasses for one of malloc's.
struct alignas(16) Header {
    std::size_t size_class;
};

struct FreeBlock {
    FreeBlock* next;
};

class Pool {
  public:
    Pool() : memory_{this, allocate, release, allocate_zeroed, resize} {}
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;
    nghttp2_mem* memory() { return &memory_; }

  private:
    static Header* header_of(void* block) { return static_cast<Header*>(block) - 1; }
    static std::size_t capacity(std::size_t size_class) { return size_class * kStepBytes; }

    static void* allocate(std::size_t size, void* pointer) {
        auto* pool = static_cast<Pool*>(pointer);
        const std::size_t size_class =
            std::min((std::max<std::size_t>(size, 1) - 1) / kStepBytes + 1, kClasses);
        if (size_class < kClasses && pool->free_[size_class] != nullptr) {
            FreeBlock* block = pool->free_[size_class];
            pool->free_[size_class] = block->next;
            pool->kept_bytes_ -= capacity(size_class);
            return block;
        }
        const std::size_t bytes = size_class < kClasses ? capacity(size_class) : size;
        if (bytes > SIZE_MAX - sizeof(Header)) return nullptr;
        auto* header = static_cast<Header*>(std::malloc(sizeof(Header) + bytes));
        if (header == nullptr) return nullptr;
        header->size_class = size_class;
        return header + 1;
    }

    static void release(void* block, void* pointer) {
        if (block == nullptr) return;
        auto* pool = static_cast<Pool*>(pointer);
        Header* header = header_of(block);
        const std::size_t size_class = header->size_class;
        if (size_class >= kClasses || pool->kept_bytes_ >= kKeptBytesMax) {
            std::free(header);
            return;
        }
        auto* free_block = static_cast<FreeBlock*>(block);
        free_block->next = pool->free_[size_class];
        pool->free_[size_class] = free_block;
        pool->kept_bytes_ += capacity(size_class);
    }

    static void* allocate_zeroed(std::size_t count, std::size_t size, void* pointer) {
        std::size_t bytes = 0;
        if (__builtin_mul_overflow(count, size, &bytes)) return nullptr;
        void* block = allocate(bytes, pointer);
        if (block != nullptr) std::memset(block, 0, bytes);
        return block;
    }

    static void* resize(void* block, std::size_t size, void* pointer) {
        if (block == nullptr) return allocate(size, pointer);
        Header* header = header_of(block);
        if (header->size_class >= kClasses) {
            if (size > SIZE_MAX - sizeof(Header)) return nullptr;
            auto* moved = static_cast<Header*>(std::realloc(header, sizeof(Header) + size));
            return moved == nullptr ? nullptr : moved + 1;
        }
        const std::size_t old_size = capacity(header->size_class);
        if (size <= old_size) return block;
        void* moved = allocate(size, pointer);
        if (moved == nullptr) return nullptr;
        std::memcpy(moved, block, old_size);
        release(block, pointer);
        return moved;
    }

    nghttp2_mem memory_;
    FreeBlock* free_[kClasses] = {};
    std::size_t kept_bytes_ = 0;
};

}  // namespace

nghttp2_mem* session_memory() {
#if defined(__SANITIZE_ADDRESS__)
    return nullptr;  // malloc, so that every wrong access is seen
#else
    // Never destroyed: sessions of a thread may outlive its thread-local objects.
    thread_local Pool* pool = new Pool();
    return pool->memory();
#endif
}

}  // namespace infersched::http2
