// The way of a reply: read, cut by rows, put together again, carried over a stream.
#include <string>

#include "input.h"
#include "kserve/codec.h"

namespace {

using namespace infersched;          // NOLINT
using namespace infersched::kserve;  // NOLINT
using fuzz::Input;

constexpr std::uint32_t kRows = 12;

// Requests of one byte a row that want all outputs, X, Y, or both; the last one's rows are padded
// to four bytes, and X is cut back to what the request had.
struct Requests {
    SignatureTable signatures;
    RequestReader reader{&signatures};
    PreparedRequest all[5];

    Requests() {
        ModelSchema model;
        model.name = "m";
        model.version = "3";
        model.max_batch_size = 64;
        TensorSchema tensor;
        tensor.name = "I";
        tensor.data_type = DataType::kUint8;
        tensor.dims = {1};
        model.inputs.push_back(tensor);
        for (const char* name : {"X", "Y", "W"}) {
            tensor.name = name;
            tensor.dims = {-1};
            model.outputs.push_back(tensor);
        }
        const std::string input = "\x0a\x01I\x12\x05UINT8\x1a\x02\x0c\x01";
        for (int i = 0; i < 5; ++i) {
            if (i == 4) {
                model.inputs[0].dims = {-1};
                model.inputs[0].padding.buckets = {4};
                model.outputs[0].trim_to = "I";
            }
            std::string message = "\x0a\x01m";
            if (i != 0) message += "\x1a\x02id";
            message += "\x2a" + std::string(1, static_cast<char>(input.size())) + input;
            if (i == 1 || i == 3) message += "\x32\x03\x0a\x01X";
            if (i == 2 || i == 3) message += "\x32\x03\x0a\x01Y";
            message += "\x3a\x0c" + std::string(kRows, 'v');
            const Status status =
                reader.prepare(BufferRef::copy_of(span_of(message)), model, {}, &all[i]);
            EXPECT(status.ok() && all[i].rows() == kRows);
        }
    }
};

BufferRef written(const PreparedRequest& request, const ReplyRows* parts, std::size_t count) {
    Pieces answer;
    std::string error;
    EXPECT(write_reply(request, parts, count, false, &answer, &error));
    return fuzz::joined(answer);
}

void check_rows(const BufferRef& message, std::uint32_t rows) {
    Reply reply;
    std::string error;
    EXPECT(reply.read(message, &error));
    EXPECT(reply.splits_into(rows, &error));
}

void check_split(const BufferRef& message, const PreparedRequest& request, Input* input) {
    Reply reply;
    std::string error;
    if (!reply.read(message, &error)) {
        EXPECT(!error.empty());
        return;
    }
    Pieces forwarded;
    const ReplyRows whole = {&reply, 0, kRows};
    EXPECT(write_reply(request, &whole, 1, true, &forwarded, &error));
    const std::uint32_t rows = 1 + input->choice(kRows);
    if (!reply.splits_into(rows, &error)) {
        EXPECT(!error.empty());
        return;
    }
    const std::uint32_t cut = input->choice(rows);
    const ReplyRows parts[] = {{&reply, 0, cut}, {&reply, cut, rows - cut}};
    check_rows(written(request, parts + 1, 1), rows - cut);
    if (cut == 0) return;
    check_rows(written(request, parts, 1), cut);
    const BufferRef together = written(request, parts, 2);
    check_rows(together, rows);
    const ReplyRows all = {&reply, 0, rows};
    const BufferRef at_once = written(request, &all, 1);
    EXPECT(together.span().text() == at_once.span().text());

    // The same parts in replies of their own, as backends would have sent them.
    Reply own[2];
    for (int i = 0; i < 2; ++i) {
        EXPECT(own[i].read(written(request, parts + i, 1), &error));
        EXPECT(own[i].splits_into(parts[i].rows, &error));
    }
    const ReplyRows apart[] = {{&own[0], 0, cut}, {&own[1], 0, rows - cut}};
    const BufferRef joined = written(request, apart, 2);
    check_rows(joined, rows);

    // Texts are passed on as they are: only a reply that decodes gives one that does.
    Pieces original;
    original.append_copy(message.span());
    wrap_stream_reply(&original);
    StreamReply read;
    if (!read_stream_reply(fuzz::joined(original), &read, &error)) return;
    Pieces wrapped;
    EXPECT(write_reply(request, &all, 1, false, &wrapped, &error));
    wrap_stream_reply(&wrapped);
    EXPECT(read_stream_reply(fuzz::joined(wrapped), &read, &error));
    EXPECT(read.final && read.error_message.empty());
}

void check_stream(const BufferRef& message) {
    StreamReply reply;
    std::string error;
    if (!read_stream_reply(message, &reply, &error)) {
        EXPECT(!error.empty());
        return;
    }
    Pieces written;
    write_stream_reply(reply, reply.id, "mine", &written);
    StreamReply again;
    EXPECT(read_stream_reply(fuzz::joined(written), &again, &error));
    EXPECT(again.final == reply.final && again.empty == reply.empty);
    EXPECT(again.error_message.empty() == reply.error_message.empty());
    const bool told_id = reply.error_message.empty() && reply.response.data != nullptr;
    EXPECT(!told_id || again.id == "mine");

    Pieces failed;
    write_stream_error(reply.error_message, reply.id, &failed);
    StreamReply told;
    EXPECT(read_stream_reply(fuzz::joined(failed), &told, &error));
    EXPECT(told.error_message == reply.error_message);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static Requests requests;
    const fuzz::CpuBound bound(size);
    Input input(data, size);
    const bool stream = input.flag();
    const PreparedRequest& request = requests.all[input.choice(5)];
    const std::uint32_t first = input.choice(256);
    const std::uint32_t second = input.choice(256);
    const BufferRef message = fuzz::exact_copy(input.bytes(input.left()));
    if (stream) {
        check_stream(message);
        return 0;
    }
    const std::uint8_t picks[] = {static_cast<std::uint8_t>(second),
                                  static_cast<std::uint8_t>(first)};
    Input rows(picks, sizeof picks);
    check_split(message, request, &rows);
    return 0;
}
