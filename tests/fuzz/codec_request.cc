// The way of a request through the codec: a random model and two messages. What is accepted is
// merged, and what was merged is read again.
#include <string>

#include "input.h"
#include "kserve/codec.h"

namespace {

using namespace infersched;          // NOLINT
using namespace infersched::kserve;  // NOLINT
using fuzz::Input;

constexpr std::uint32_t kRowsMax = 1 << 16;

std::vector<std::int64_t> random_dims(Input* input) {
    std::vector<std::int64_t> dims;
    for (std::uint32_t rank = input->choice(4); rank != 0; --rank)
        dims.push_back(static_cast<std::int64_t>(input->choice(6)) - 1);
    for (std::int64_t& dim : dims) dim = dim == 0 ? -1 : dim;
    return dims;
}

// Lengths of the first input made equal, with a mask and the length told, where it has one.
void add_padding(Input* input, ModelSchema* model) {
    if (input->choice(4) != 0) return;
    const std::uint32_t told = input->choice(4);
    TensorSchema& padded = model->inputs[0];
    for (std::uint32_t axis = 0; axis < padded.dims.size(); ++axis) {
        if (padded.dims[axis] != -1) continue;
        padded.padding.axis = axis;
        padded.padding.buckets = {2, 5};
        if (told & 1) padded.padding.mask_input = "MASK";
        if (told & 2) padded.padding.length_input = "LENGTH";
        break;
    }
    if (padded.padding.buckets.empty()) return;
    TensorSchema mask;
    mask.name = "MASK";
    mask.data_type = DataType::kInt32;
    mask.dims = {-1};
    TensorSchema length = mask;
    length.name = "LENGTH";
    length.dims = {1};
    if (told & 1) model->inputs.push_back(mask);
    if (told & 2) model->inputs.push_back(length);
}

bool is_padded(const ModelSchema& model) { return !model.inputs[0].padding.buckets.empty(); }

ModelSchema random_model(Input* input) {
    static const char* const kInputs[] = {"A", "B", "S", "T_FP32"};
    static const char* const kOutputs[] = {"X", "Y", "W"};
    ModelSchema model;
    model.name = "m";
    model.version = "1";
    model.max_batch_size = input->choice(9);
    model.rows_max = input->choice(4) == 0 ? model.max_batch_size : 0;
    const std::uint32_t flags = input->choice(32);
    model.merge = flags != 1;
    model.decoupled = flags == 2;
    model.sequence = flags == 3;
    for (std::uint32_t i = 0, count = 1 + input->choice(4); i < count; ++i) {
        TensorSchema tensor;
        tensor.name = kInputs[i];
        tensor.data_type = static_cast<DataType>(1 + input->choice(14));
        tensor.dims = random_dims(input);
        const std::uint32_t kind = input->choice(16);
        tensor.optional = kind < 4;
        tensor.shape_tensor = kind == 5;
        tensor.ragged = kind == 6;
        model.inputs.push_back(tensor);
    }
    for (std::uint32_t i = 0, count = 1 + input->choice(3); i < count; ++i) {
        TensorSchema tensor;
        tensor.name = kOutputs[i];
        tensor.data_type = static_cast<DataType>(1 + input->choice(14));
        tensor.dims = random_dims(input);
        model.outputs.push_back(tensor);
    }
    add_padding(input, &model);
    return model;
}

SignatureTable signatures;
RequestReader reader(&signatures);

// Merges the parts and reads the result as a request of any number of rows.
PreparedRequest read_merged(const RequestRows* parts, std::size_t count, std::uint32_t padded,
                            ModelSchema model) {
    Pieces message;
    merge_requests(parts, count, padded, &message);
    // Parts are merged here without regard to the largest batch, which bounds rows without data.
    model.rows_max = 0;
    if (model.max_batch_size > 0) model.max_batch_size = 2 * model.max_batch_size + 4;
    PreparedRequest merged;
    const Status status = reader.prepare(fuzz::joined(message), model, {}, &merged);
    if (!status.ok()) std::fprintf(stderr, "merged: %s\n", status.message.c_str());
    EXPECT(status.ok());
    return merged;
}

void check_merging(const PreparedRequest& a, const PreparedRequest& b, const ModelSchema& model,
                   Input* input) {
    const RequestRows both[] = {{&a, 0, a.rows()}, {&b, 0, b.rows()}};
    const PreparedRequest merged = read_merged(both, 2, 0, model);
    EXPECT(merged.mergeable());
    EXPECT(merged.rows() == a.rows() + b.rows());
    EXPECT(is_padded(model) || merged.signature() == a.signature());

    // The rows in two parts, cut anywhere, with some rows repeated behind them.
    const std::uint32_t cut = input->choice(a.rows());
    const std::uint32_t padded = input->choice(2) * (a.rows() + input->choice(5));
    if (cut == 0) return;
    const RequestRows parts[] = {{&a, 0, cut}, {&a, cut, a.rows() - cut}};
    const PreparedRequest whole = read_merged(parts, 2, padded, model);
    EXPECT(whole.rows() == (padded > a.rows() ? padded : a.rows()));
    const PreparedRequest half = read_merged(parts, 1, 0, model);
    EXPECT(half.rows() == cut);
}

// Whether the request was accepted.
bool check_request(const BufferRef& message, const ModelSchema& model, PreparedRequest* request) {
    ModelName name;
    const bool named = peek_model(message.span(), &name);
    const bool decodes = reader.decodes(message.span());
    EXPECT(named || !decodes);
    const Status status = reader.prepare(message, model, {}, request);
    if (!status.ok()) {
        EXPECT(!status.message.empty());
        EXPECT(decodes == (status.message != "Unable to parse request"));
        return false;
    }
    EXPECT(decodes);
    EXPECT(request->rows() >= 1);
    EXPECT(request->bytes() >= message.span().size);
    EXPECT(request->id() == name.id);
    for (const std::string_view region : request->regions())
        EXPECT(!request->mergeable() || region.empty());

    const RequestRows alone = {request, 0, request->rows()};
    const PreparedRequest again = read_merged(&alone, 1, 0, model);
    EXPECT(again.mergeable() == request->mergeable());
    EXPECT(again.rows() == request->rows());
    EXPECT(again.id() == request->id());
    if (request->mergeable() && !is_padded(model))
        EXPECT(again.signature() == request->signature());

    Pieces stream;
    write_stream_request(*request, "7", true, &stream);
    ModelName ours;
    const BufferRef streamed = fuzz::joined(stream);
    EXPECT(peek_model(streamed.span(), &ours) && ours.id == "7");
    return true;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const fuzz::CpuBound bound(size);
    Input input(data, size);
    const ModelSchema model = random_model(&input);
    // Mostly the same message twice; else the two halves.
    const std::size_t cut = input.choice(4) == 0 ? input.left() * input.choice(256) / 256 : 0;
    const BufferRef first = fuzz::exact_copy(input.bytes(cut == 0 ? input.left() : cut));
    const BufferRef second = cut == 0 ? first : fuzz::exact_copy(input.bytes(input.left()));
    PreparedRequest a;
    PreparedRequest b;
    PreparedRequest* const requests[] = {&a, &b};
    const BufferRef messages[] = {first, second};
    bool accepted = true;
    for (int i = 0; i < 2; ++i) {
        accepted = check_request(messages[i], model, requests[i]) && accepted;
    }
    if (!accepted || !a.mergeable() || a.signature() != b.signature()) return 0;
    if (a.rows() > kRowsMax || b.rows() > kRowsMax) return 0;
    Input choices(data, size);
    check_merging(a, b, model, &choices);
    return 0;
}
