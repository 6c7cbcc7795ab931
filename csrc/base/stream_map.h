// A small open-addressing map from stream ids to handles; no allocation per entry.
//
// Stream ids are positive, so 0 marks an empty place. Linear probing, deletion by shifting back.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace infersched {

class StreamMap {
  public:
    // 0 when absent.
    std::uint64_t find(std::int32_t stream) const {
        if (places_.empty()) return 0;
        for (std::size_t at = home(stream);; at = (at + 1) & mask()) {
            if (places_[at].stream == stream) return places_[at].value;
            if (places_[at].stream == 0) return 0;
        }
    }

    // `stream` must be absent.
    void insert(std::int32_t stream, std::uint64_t value) {
        if ((used_ + 1) * 4 > places_.size() * 3) grow();
        place(stream, value);
        ++used_;
    }

    // The value that was there; 0 when absent.
    std::uint64_t take(std::int32_t stream) {
        if (places_.empty()) return 0;
        std::size_t at = home(stream);
        while (places_[at].stream != stream) {
            if (places_[at].stream == 0) return 0;
            at = (at + 1) & mask();
        }
        const std::uint64_t value = places_[at].value;
        for (std::size_t next = (at + 1) & mask(); places_[next].stream != 0;
             next = (next + 1) & mask()) {
            // An entry moves into the gap unless its home lies between the gap and itself.
            if (((next - home(places_[next].stream)) & mask()) < ((next - at) & mask())) continue;
            places_[at] = places_[next];
            at = next;
        }
        places_[at] = {};
        --used_;
        return value;
    }

    std::size_t size() const { return used_; }

    template <typename Visit>
    void each(Visit&& visit) const {
        for (const Place& entry : places_)
            if (entry.stream != 0) visit(entry.stream, entry.value);
    }

  private:
    struct Place {
        std::int32_t stream = 0;
        std::uint64_t value = 0;
    };
    std::size_t mask() const { return places_.size() - 1; }
    std::size_t home(std::int32_t stream) const {
        const std::uint32_t spread = static_cast<std::uint32_t>(stream) * 0x9e3779b1u;
        return (spread ^ spread >> 15) & mask();
    }
    void place(std::int32_t stream, std::uint64_t value) {
        std::size_t at = home(stream);
        while (places_[at].stream != 0) at = (at + 1) & mask();
        places_[at] = {stream, value};
    }
    void grow() {
        std::vector<Place> old = std::move(places_);
        places_.assign(old.empty() ? 8 : old.size() * 2, Place{});
        for (const Place& entry : old)
            if (entry.stream != 0) place(entry.stream, entry.value);
    }

    std::vector<Place> places_;
    std::size_t used_ = 0;
};

}  // namespace infersched
