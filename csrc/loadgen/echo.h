// A backend that costs next to nothing: answers a ModelInferRequest with its inputs as outputs.
//
// It stands in for Triton where the scheduler alone is measured. Works for merged requests of any
// rows, since an output tensor has the layout of an input tensor. Tensor bytes go back by
// reference.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/time.h"
#include "http2/session.h"

namespace infersched::loadgen {

// The ModelInferResponse that echoes `request`. False when it is no ModelInferRequest. `rows` is
// the first dimension of its first input.
bool echo_inputs(const BufferRef& request, Pieces* response, std::uint64_t* rows);

class EchoServer {
  public:
    explicit EchoServer(std::string path);

    std::uint32_t connected();
    // False: close the connection after one more pull.
    bool received(std::uint32_t connection, Span bytes, Nanos now);
    void connection_lost(std::uint32_t connection);
    // Answers everything that came with the last bytes.
    void answer(std::uint32_t connection);
    void pull(std::uint32_t connection, std::size_t bytes_max, std::vector<Slice>* out);

    std::uint64_t executions() const { return executions_; }
    std::uint64_t rows() const { return rows_; }

  private:
    void answer_request(http2::ServerSession* session, const http2::Event& event);

    http2::ServerConfig config_;
    http2::ByteBudget budget_;
    std::vector<std::unique_ptr<http2::ServerSession>> sessions_;
    std::uint64_t executions_ = 0;
    std::uint64_t rows_ = 0;
};

}  // namespace infersched::loadgen
