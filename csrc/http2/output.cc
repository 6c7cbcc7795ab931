#include "http2/output.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace infersched::http2 {

namespace {
constexpr std::size_t kGatherFirstBytes = 1024;
constexpr std::size_t kGatherExpectedMax = 64u << 10;
constexpr std::size_t kRunBytes = 1000;  // what malloc keeps at hand
// Shorter messages are cheaper to copy than to refer to.
constexpr std::size_t kCopiedMessageBytesMax = 400;
}  // namespace

void Output::begin(std::size_t bytes_max, std::vector<Slice>* slices) {
    slices_ = slices;
    bytes_max_ = bytes_max;
    written_ = 0;
    run_offset_ = 0;
    runs_.clear();
}

void Output::write(Span bytes) {
    if (!gather_) {
        gather_ = BufferRef::make();
        if (!gather_->reserve(expected_bytes_)) std::abort();
    }
    if (!gather_->append(bytes.data, bytes.size)) std::abort();
    written_ += bytes.size;
}

void Output::close_run() {
    const std::size_t end = gather_ ? gather_->size() : 0;
    if (end == run_offset_) return;
    runs_.push_back({slices_->size(), run_offset_, end - run_offset_});
    slices_->emplace_back();
    run_offset_ = end;
}

void Output::refer(const BufferRef& owner, Span bytes) {
    close_run();
    slices_->push_back({owner, bytes});
    written_ += bytes.size;
}

void Output::finish() {
    close_run();
    for (const Run& run : runs_)
        (*slices_)[run.slice] = {gather_, {gather_->data() + run.offset, run.size}};
    if (gather_)
        expected_bytes_ = std::clamp(gather_->size(), kGatherFirstBytes, kGatherExpectedMax);
    if (runs_.capacity() > 64) std::vector<Run>().swap(runs_);
    gather_ = BufferRef();
    slices_ = nullptr;
}

void OutBody::set_message(Pieces&& message, bool compressed) {
    clear();
    message_ = std::move(message);
    write_prefix(prefix_, message_.size(), compressed);
    prefix_sent_ = 0;
    remaining_ = kPrefixBytes + message_.size();
}

void OutBody::append(const BufferRef& owner, Span bytes) {
    if (bytes.empty()) return;
    slices_.push_back({owner, bytes});
    remaining_ += bytes.size;
}

void OutBody::append_message(const Pieces& message, bool compressed) {
    const bool copied = message.size() <= kCopiedMessageBytesMax;
    std::uint8_t* at = extend_run(kPrefixBytes + (copied ? message.size() : 0));
    write_prefix(at, message.size(), compressed);
    at += kPrefixBytes;
    for (std::size_t i = 0; i < message.count(); ++i) {
        const Span piece = message.piece(i);
        if (copied) {
            std::memcpy(at, piece.data, piece.size);
            at += piece.size;
        } else {
            append(message.owner(i), piece);
        }
    }
}

// Memory for the next bytes of the body. Slices refer to the run: a full one is left to them, never
// grown.
std::uint8_t* OutBody::extend_run(std::size_t size) {
    if (!run_ || run_->size() + size > run_->capacity()) {
        run_ = BufferRef::make();
        if (!run_->reserve(kRunBytes)) std::abort();
    }
    std::uint8_t* const begin = run_->extend(size);
    if (begin == nullptr) std::abort();
    const bool follows = index_ < slices_.size() && slices_.back().owner.get() == run_.get();
    if (follows) {
        slices_.back().bytes.size += size;
        remaining_ += size;
    } else {
        append(run_, {begin, size});
    }
    return begin;
}

void OutBody::send(std::size_t size, Output* output) {
    remaining_ -= size;
    if (prefix_sent_ < kPrefixBytes) {
        const std::size_t part = std::min<std::size_t>(size, kPrefixBytes - prefix_sent_);
        output->write({prefix_ + prefix_sent_, part});
        prefix_sent_ += static_cast<std::uint8_t>(part);
        size -= part;
    }
    if (slices_.empty()) {
        send_message(size, output);
    } else {
        send_slices(size, output);
    }
    if (remaining_ == 0) clear();
}

void OutBody::send_message(std::size_t size, Output* output) {
    while (size > 0) {
        const Span piece = message_.piece(index_);
        const Span part{piece.data + offset_, std::min(size, piece.size - offset_)};
        if (part.size > kGatherBytesMax) {
            output->refer(message_.owner(index_), part);
        } else {
            output->write(part);
        }
        size -= part.size;
        offset_ += part.size;
        if (offset_ == piece.size) {
            ++index_;
            offset_ = 0;
        }
    }
}

void OutBody::send_slices(std::size_t size, Output* output) {
    while (size > 0) {
        Slice& slice = slices_[index_];
        const Span part{slice.bytes.data, std::min(size, slice.bytes.size)};
        if (part.size > kGatherBytesMax) {
            output->refer(slice.owner, part);
        } else {
            output->write(part);
        }
        size -= part.size;
        slice.bytes = {part.data + part.size, slice.bytes.size - part.size};
        if (slice.bytes.empty()) {
            slice.owner = BufferRef();
            ++index_;
        }
    }
    if (index_ >= 32 && index_ * 2 >= slices_.size()) {
        slices_.erase(slices_.begin(), slices_.begin() + static_cast<std::ptrdiff_t>(index_));
        index_ = 0;
    }
}

void OutBody::clear() {
    remaining_ = index_ = offset_ = 0;
    prefix_sent_ = kPrefixBytes;
    message_.clear();
    slices_.clear();
    run_ = BufferRef();
}

}  // namespace infersched::http2
