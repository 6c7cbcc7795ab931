#include "base/bytes.h"

#include <algorithm>
#include <cstdlib>

#include "base/large_blocks.h"
#include "base/shared_blocks.h"

namespace infersched {

namespace {
constexpr std::size_t kSmallestCapacity = 256;
}

Buffer::~Buffer() { free_memory(); }

void Buffer::free_memory() {
    if (shared_)
        shared_blocks().give_back({data_ - lead_, capacity_ + lead_});
    else
        give_back_block({data_, capacity_});
}

bool Buffer::share(std::size_t capacity, std::size_t lead) {
    std::size_t wanted = 0;
    if (shared_ || __builtin_add_overflow(std::max(capacity, size_), lead, &wanted)) return false;
    const Block block = shared_blocks().take(wanted);
    if (block.data == nullptr) return false;
    std::uint8_t* const data = static_cast<std::uint8_t*>(block.data) + lead;
    if (size_ > 0) std::memcpy(data, data_, size_);
    free_memory();
    data_ = data;
    capacity_ = block.capacity - lead;
    shared_ = true;
    lead_ = lead;
    return true;
}

bool Buffer::reserve(std::size_t capacity, std::size_t expected) {
    if (capacity <= capacity_) return true;
    Block grown{nullptr, capacity};
    if (shared_) {
        grown = take_block(capacity, expected);
        if (grown.data != nullptr) std::memcpy(grown.data, data_, size_);
        if (grown.data != nullptr) free_memory();
    } else if (capacity < kLargeBlockBytes) {
        grown.data = std::realloc(data_, capacity);
    } else if (capacity_ >= kLargeBlockBytes) {
        grown = grow_block({data_, capacity_}, capacity);
    } else {
        grown = take_block(capacity, expected);
        if (grown.data != nullptr && size_ > 0) std::memcpy(grown.data, data_, size_);
        if (grown.data != nullptr) std::free(data_);
    }
    if (grown.data == nullptr) return false;
    data_ = static_cast<std::uint8_t*>(grown.data);
    capacity_ = grown.capacity;
    shared_ = false;
    lead_ = 0;
    return true;
}

std::uint8_t* Buffer::extend(std::size_t size) {
    if (size > capacity_ - size_) {
        std::size_t wanted = 0;
        if (__builtin_add_overflow(size_, size, &wanted)) return nullptr;
        if (!reserve(std::max({wanted, capacity_ * 2, kSmallestCapacity}))) return nullptr;
    }
    std::uint8_t* const begin = data_ + size_;
    size_ += size;
    return begin;
}

bool Buffer::append(const void* bytes, std::size_t size) {
    if (size == 0) return true;
    std::uint8_t* const at = extend(size);
    if (at == nullptr) return false;
    std::memcpy(at, bytes, size);
    return true;
}

BufferRef BufferRef::make() {
    BufferRef reference;
    reference.buffer_ = new Buffer();
    reference.buffer_->references_ = 1;
    return reference;
}

BufferRef BufferRef::copy_of(Span bytes) {
    BufferRef reference = make();
    if (!reference->append(bytes.data, bytes.size)) std::abort();
    return reference;
}

void BufferRef::release() {
    if (buffer_ != nullptr && --buffer_->references_ == 0) delete buffer_;
    buffer_ = nullptr;
}

std::uint8_t* Pieces::append_space(std::size_t size) {
    if (!own_) own_ = BufferRef::make();
    const std::size_t offset = own_->size();
    std::uint8_t* const begin = own_->extend(size);
    if (begin == nullptr) std::abort();
    size_ += size;
    if (!pieces_.empty() && !pieces_.back().owner &&
        pieces_.back().offset + pieces_.back().size == offset) {
        pieces_.back().size += size;
    } else {
        pieces_.push_back({BufferRef(), nullptr, offset, size});
    }
    return begin;
}

void Pieces::shrink_space(std::size_t unused) {
    own_->truncate(own_->size() - unused);
    pieces_.back().size -= unused;
    size_ -= unused;
}

void Pieces::append_copy(Span bytes) {
    if (bytes.empty()) return;
    std::memcpy(append_space(bytes.size), bytes.data, bytes.size);
}

void Pieces::append_reference(const BufferRef& owner, Span bytes) {
    if (bytes.empty()) return;
    size_ += bytes.size;
    pieces_.push_back({owner, bytes.data, 0, bytes.size});
}

void Pieces::append(Pieces&& other) {
    for (std::size_t i = 0; i < other.count(); ++i)
        append_reference(other.owner(i), other.piece(i));
    other.clear();
}

void Pieces::clear() {
    pieces_.clear();
    own_ = BufferRef();
    size_ = 0;
}

void Pieces::reuse() {
    pieces_.clear();
    if (own_.references() == 1) {
        own_->truncate(0);
    } else {
        own_ = BufferRef();
    }
    size_ = 0;
}

Span Pieces::piece(std::size_t i) const {
    const Piece& piece = pieces_[i];
    if (piece.owner) return {piece.data, piece.size};
    return {own_->data() + piece.offset, piece.size};
}

BufferRef Pieces::owner(std::size_t i) const { return pieces_[i].owner ? pieces_[i].owner : own_; }

std::vector<std::uint8_t> Pieces::join() const {
    std::vector<std::uint8_t> bytes;
    bytes.reserve(size_);
    for (std::size_t i = 0; i < count(); ++i) {
        const Span span = piece(i);
        bytes.insert(bytes.end(), span.data, span.data + span.size);
    }
    return bytes;
}

}  // namespace infersched
