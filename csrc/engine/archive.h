// The engine's state as bytes: one description, written by ArchiveWriter and read by ArchiveReader.
//
// Words of the host's byte order: a state is loaded where it was saved. A checksum ends it, so that
// a damaged or cut state is refused as a whole and its values need no further doubt.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

namespace infersched::engine {

// FNV-1a.
inline std::uint64_t archive_checksum(const std::uint8_t* bytes, std::size_t size) {
    std::uint64_t hash = 0xcbf29ce484222325ull;
    for (std::size_t i = 0; i < size; ++i) hash = (hash ^ bytes[i]) * 0x100000001b3ull;
    return hash;
}

class ArchiveWriter {
  public:
    static constexpr bool kReads = false;

    template <class T>
    void operator()(T& value) {
        static_assert(std::is_arithmetic_v<T> || std::is_enum_v<T>);
        const auto* begin = reinterpret_cast<const std::uint8_t*>(&value);
        bytes_.insert(bytes_.end(), begin, begin + sizeof(T));
    }
    template <class T>
    void operator()(std::vector<T>& values) {
        vector_size(values, sizeof(T));
        for (T& value : values) (*this)(value);
    }
    template <class Container>
    void vector_size(Container& values, std::size_t) {
        auto size = static_cast<std::uint64_t>(values.size());
        (*this)(size);
    }
    void raw(void* data, std::size_t size) {
        const auto* begin = static_cast<const std::uint8_t*>(data);
        bytes_.insert(bytes_.end(), begin, begin + size);
    }
    bool require(bool) { return true; }
    // The archive with its checksum; the writer is empty afterwards.
    std::vector<std::uint8_t> take() {
        std::uint64_t checksum = archive_checksum(bytes_.data(), bytes_.size());
        (*this)(checksum);
        return std::move(bytes_);
    }

  private:
    std::vector<std::uint8_t> bytes_;
};

// Reads what ArchiveWriter wrote. After the first thing that cannot be, every read gives zeros.
class ArchiveReader {
  public:
    static constexpr bool kReads = true;

    explicit ArchiveReader(const std::vector<std::uint8_t>& bytes) : bytes_(bytes) {
        std::uint64_t checksum = 0;
        if (!require(bytes_.size() >= sizeof(checksum))) return;
        end_ = bytes_.size() - sizeof(checksum);
        std::memcpy(&checksum, bytes_.data() + end_, sizeof(checksum));
        require(checksum == archive_checksum(bytes_.data(), end_));
    }

    template <class T>
    void operator()(T& value) {
        static_assert(std::is_arithmetic_v<T> || std::is_enum_v<T>);
        if constexpr (std::is_same_v<T, bool>) {
            std::uint8_t byte = 0;
            raw(&byte, 1);
            value = byte != 0;
        } else {
            raw(&value, sizeof(T));
        }
    }
    template <class T>
    void operator()(std::vector<T>& values) {
        vector_size(values, sizeof(T));
        for (T& value : values) (*this)(value);
    }
    // `bytes_min`: what one element takes at least, so that a wrong size cannot exhaust memory.
    template <class Container>
    void vector_size(Container& values, std::size_t bytes_min) {
        std::uint64_t size = 0;
        (*this)(size);
        if (!require(size <= (end_ - position_) / bytes_min)) size = 0;
        values.resize(static_cast<decltype(values.size())>(size));
    }
    void raw(void* data, std::size_t size) {
        if (!require(size <= end_ - position_)) {
            std::memset(data, 0, size);
            return;
        }
        std::memcpy(data, bytes_.data() + position_, size);
        position_ += size;
    }
    // Notes that the bytes are no state of an engine when `holds` is false.
    bool require(bool holds) {
        if (!holds) {
            sound_ = false;
            position_ = end_;
        }
        return sound_;
    }
    bool complete() const { return sound_ && position_ == end_; }

  private:
    const std::vector<std::uint8_t>& bytes_;
    std::size_t position_ = 0;
    std::size_t end_ = 0;
    bool sound_ = true;
};

}  // namespace infersched::engine
