#include "http2/compression.h"

#include <algorithm>
#include <cstdlib>
#include <utility>
#include <vector>

namespace infersched::http2 {

namespace {

constexpr int kZlibWindowBits = 15;
constexpr int kGzipWindowBits = kZlibWindowBits + 16;
constexpr int kMemoryLevel = 8;
constexpr std::size_t kSmallestBytes = 64;  // a shorter message never shrinks by gzip's 18 bytes
constexpr std::size_t kFirstOutMin = 256;
constexpr std::size_t kFirstOutMax = 64u << 10;
constexpr std::size_t kTrialBytes = 256u << 10;
constexpr std::size_t kDeflateLagBytes = 16u << 10;  // taken in and not written yet
constexpr std::size_t kStepBytesMax = 1u << 30;
constexpr std::size_t kSpareInflatersMax = 16;

int window_bits(Compression compression) {
    return compression == Compression::kGzip ? kGzipWindowBits : kZlibWindowBits;
}

// zlib reads through a pointer that is not const.
Bytef* input_of(Span bytes) { return const_cast<Bytef*>(bytes.data); }

// The thread's deflaters, one an encoding, made at their first use. Never destroyed: sessions of a
// thread may outlive its thread-local objects. Null: no memory.
z_stream* deflater(Compression compression) {
    thread_local z_stream* made[3] = {};
    z_stream*& stream = made[static_cast<std::size_t>(compression)];
    if (stream != nullptr) return deflateReset(stream) == Z_OK ? stream : nullptr;
    auto fresh = std::make_unique<z_stream>();
    if (deflateInit2(fresh.get(), Z_BEST_SPEED, Z_DEFLATED, window_bits(compression), kMemoryLevel,
                     Z_DEFAULT_STRATEGY) != Z_OK)
        return nullptr;
    stream = fresh.release();
    return stream;
}

// Gives zlib more room at the end of `out`, `bytes_max` altogether. False: there is none.
bool grow(z_stream* stream, Buffer* out, std::size_t bytes_max) {
    const std::size_t size = out->size();
    const std::size_t step = std::min(std::max(size, kFirstOutMin), bytes_max - size);
    if (step == 0) return false;
    std::uint8_t* const at = out->extend(step);
    if (at == nullptr) return false;
    stream->next_out = at;
    stream->avail_out = static_cast<uInt>(step);
    return true;
}

// Appends what `part` deflates to to `*out`, `bytes_max` altogether. False: no room.
bool deflate_part(Span part, bool last, std::size_t bytes_max, z_stream* stream, Buffer* out) {
    stream->next_in = input_of(part);
    stream->avail_in = static_cast<uInt>(part.size);
    while (stream->avail_in > 0 || last) {
        if (stream->avail_out == 0 && !grow(stream, out, bytes_max)) return false;
        const int result = deflate(stream, last ? Z_FINISH : Z_NO_FLUSH);
        if (result == Z_STREAM_END) return true;
        if (result != Z_OK) return false;
    }
    return true;
}

// What saves less than an eighth at its start (numbers without a pattern) is not worth the time.
bool pays(const z_stream& stream) {
    return stream.total_out + kDeflateLagBytes < stream.total_in - stream.total_in / 8;
}

std::vector<std::unique_ptr<Inflater>>& spare_inflaters() {
    thread_local auto* spare = new std::vector<std::unique_ptr<Inflater>>();
    return *spare;
}

}  // namespace

std::string_view encoding_name(Compression compression) {
    switch (compression) {
        case Compression::kGzip:
            return "gzip";
        case Compression::kDeflate:
            return "deflate";
        default:
            return "identity";
    }
}

bool parse_encoding(std::string_view name, Compression* compression) {
    for (const Compression known :
         {Compression::kNone, Compression::kGzip, Compression::kDeflate}) {
        if (name != encoding_name(known)) continue;
        *compression = known;
        return true;
    }
    return false;
}

bool accepts_encoding(std::string_view list, Compression compression) {
    while (!list.empty()) {
        const std::size_t end = std::min(list.find(','), list.size());
        std::string_view name = list.substr(0, end);
        list.remove_prefix(std::min(end + 1, list.size()));
        while (!name.empty() && name.front() == ' ') name.remove_prefix(1);
        while (!name.empty() && name.back() == ' ') name.remove_suffix(1);
        if (name == encoding_name(compression)) return true;
    }
    return false;
}

bool deflate_message(Compression compression, Pieces* message) {
    if (message->size() < kSmallestBytes || message->size() > kDeflatedBytesMax) return false;
    z_stream* const stream = deflater(compression);
    if (stream == nullptr) return false;
    const BufferRef out = BufferRef::make();
    stream->avail_out = 0;
    bool tried = false;
    for (std::size_t i = 0; i < message->count(); ++i) {
        Span left = message->piece(i);
        while (!left.empty()) {
            const std::size_t size = std::min(left.size, kTrialBytes);
            const bool last = i + 1 == message->count() && size == left.size;
            if (!deflate_part({left.data, size}, last, message->size() - 1, stream, out.get()))
                return false;
            left = {left.data + size, left.size - size};
            if (!last && !tried && stream->total_in >= kTrialBytes) {
                tried = true;
                if (!pays(*stream)) return false;
            }
        }
    }
    out->truncate(out->size() - stream->avail_out);
    message->clear();
    message->append_reference(out, out.span());
    return true;
}

std::unique_ptr<Inflater> Inflater::take(Compression compression) {
    std::vector<std::unique_ptr<Inflater>>& spare = spare_inflaters();
    if (!spare.empty()) {
        std::unique_ptr<Inflater> taken = std::move(spare.back());
        spare.pop_back();
        if (inflateReset2(&taken->stream_, window_bits(compression)) != Z_OK) return nullptr;
        taken->ended_ = false;
        return taken;
    }
    auto made = std::make_unique<Inflater>();
    if (inflateInit2(&made->stream_, window_bits(compression)) != Z_OK) return nullptr;
    return made;
}

void Inflater::give_back(std::unique_ptr<Inflater> inflater) {
    std::vector<std::unique_ptr<Inflater>>& spare = spare_inflaters();
    if (inflater != nullptr && spare.size() < kSpareInflatersMax)
        spare.push_back(std::move(inflater));
}

Inflater::~Inflater() { inflateEnd(&stream_); }

Inflater::Result Inflater::feed(Span bytes, Buffer* out, std::size_t bytes_max) {
    stream_.next_in = input_of(bytes);
    stream_.avail_in = static_cast<uInt>(bytes.size);
    // The memory taken follows what has arrived.
    const std::size_t first = std::clamp(bytes.size * 4, kFirstOutMin, kFirstOutMax);
    while (!ended_) {
        // One byte more than may come tells a message that is too large from one at the bound.
        const std::size_t size = out->size();
        const std::size_t step = std::min(
            {std::max(out->capacity() - size, first), bytes_max + 1 - size, kStepBytesMax});
        stream_.next_out = out->extend(step);
        if (stream_.next_out == nullptr) return Result::kOutOfMemory;
        stream_.avail_out = static_cast<uInt>(step);
        const int result = inflate(&stream_, Z_NO_FLUSH);
        out->truncate(size + step - stream_.avail_out);
        if (out->size() > bytes_max) return Result::kTooLarge;
        if (result == Z_MEM_ERROR) return Result::kOutOfMemory;
        if (result != Z_OK && result != Z_BUF_ERROR && result != Z_STREAM_END)
            return Result::kCorrupt;
        ended_ = result == Z_STREAM_END;
        if (!ended_ && stream_.avail_in == 0 && stream_.avail_out > 0) return Result::kOk;
    }
    return stream_.avail_in == 0 ? Result::kOk : Result::kCorrupt;
}

}  // namespace infersched::http2
