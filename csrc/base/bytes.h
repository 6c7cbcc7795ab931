// Reference-counted byte buffers and the slices of them that travel between rooms.
//
// A message is received into one Buffer. What is passed on are Slices of it: tensor bytes are never
// copied between rooms, a Buffer lives until the last Slice of it is gone. Counts are not atomic:
// one data plane has one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <utility>
#include <vector>

namespace infersched {

// A view of bytes owned by somebody else.
struct Span {
    const std::uint8_t* data = nullptr;
    std::size_t size = 0;

    bool empty() const { return size == 0; }
    std::string_view text() const { return {reinterpret_cast<const char*>(data), size}; }
};

// Memory that somebody else is to write.
struct Space {
    std::uint8_t* data = nullptr;
    std::size_t size = 0;

    bool empty() const { return size == 0; }
};

inline Span span_of(std::string_view text) {
    return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

// Growable memory with an intrusive reference count; handled through BufferRef.
class Buffer {
  public:
    std::uint8_t* data() { return data_; }
    const std::uint8_t* data() const { return data_; }
    std::size_t size() const { return size_; }
    std::size_t capacity() const { return capacity_; }

    // Appends a copy. Growing moves the bytes: only the owner of a buffer that nobody has slices of
    // may append. Returns false when memory is exhausted; the buffer is then unchanged.
    [[nodiscard]] bool append(const void* bytes, std::size_t size);
    // The same without the bytes: they are to be written by the caller. nullptr when out of memory.
    [[nodiscard]] std::uint8_t* extend(std::size_t size);
    // `expected` is what it may grow to: memory that is there already is chosen by it, none is
    // taken for it.
    [[nodiscard]] bool reserve(std::size_t capacity, std::size_t expected = 0);
    // Moves the bytes into a shared block (base/shared_blocks.h) with room for `capacity`, `lead`
    // bytes behind its beginning, which is aligned to pages. False: there is none.
    [[nodiscard]] bool share(std::size_t capacity, std::size_t lead = 0);
    bool shared() const { return shared_; }
    // The reserved memory behind the bytes.
    Space space() { return {data_ + size_, capacity_ - size_}; }
    void truncate(std::size_t size) { size_ = size; }

  private:
    friend class BufferRef;
    void free_memory();
    Buffer() = default;
    ~Buffer();
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    std::uint8_t* data_ = nullptr;
    std::size_t size_ = 0;
    std::size_t capacity_ = 0;
    std::uint32_t references_ = 0;
    bool shared_ = false;
    std::size_t lead_ = 0;  // in a shared block: unused bytes before the data
};

class BufferRef {
  public:
    BufferRef() = default;
    BufferRef(const BufferRef& other) : buffer_(other.buffer_) { retain(); }
    BufferRef(BufferRef&& other) noexcept : buffer_(std::exchange(other.buffer_, nullptr)) {}
    BufferRef& operator=(BufferRef other) noexcept {
        std::swap(buffer_, other.buffer_);
        return *this;
    }
    ~BufferRef() { release(); }

    static BufferRef make();
    static BufferRef copy_of(Span bytes);

    explicit operator bool() const { return buffer_ != nullptr; }
    Buffer* operator->() const { return buffer_; }
    Buffer& operator*() const { return *buffer_; }
    Buffer* get() const { return buffer_; }
    std::uint32_t references() const { return buffer_ ? buffer_->references_ : 0; }
    Span span() const { return buffer_ ? Span{buffer_->data(), buffer_->size()} : Span{}; }

  private:
    void retain() {
        if (buffer_) ++buffer_->references_;
    }
    void release();

    Buffer* buffer_ = nullptr;
};

// Bytes inside a Buffer, kept alive by it.
struct Slice {
    BufferRef owner;
    Span bytes;
};

// The bytes of one outgoing message, in order: small pieces written here, tensor data by reference.
class Pieces {
  public:
    // Copies `bytes` into this message's own buffer.
    void append_copy(Span bytes);
    // `size` bytes of this message's own buffer to be written in place, before the next call here;
    // what was not needed goes back by shrink_space.
    std::uint8_t* append_space(std::size_t size);
    void shrink_space(std::size_t unused);
    // Refers to `bytes`, which lie in `owner`.
    void append_reference(const BufferRef& owner, Span bytes);
    void append(Pieces&& other);

    std::size_t size() const { return size_; }
    bool empty() const { return size_ == 0; }
    void clear();
    // Empties it for another message, and keeps its memory where nobody refers to that.
    void reuse();

    std::size_t count() const { return pieces_.size(); }
    // The i-th piece; valid until the next append.
    Span piece(std::size_t i) const;
    // Keeps the i-th piece alive beyond this object.
    BufferRef owner(std::size_t i) const;
    // The whole message in one run of bytes (tests and cold paths).
    std::vector<std::uint8_t> join() const;

  private:
    struct Piece {
        BufferRef owner;  // empty: the bytes lie in own_ at `offset`
        const std::uint8_t* data;
        std::size_t offset;
        std::size_t size;
    };
    std::vector<Piece> pieces_;
    BufferRef own_;
    std::size_t size_ = 0;
};

}  // namespace infersched
