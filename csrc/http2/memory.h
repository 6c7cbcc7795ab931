// Memory for nghttp2: a request costs it a dozen small, short-lived blocks, which are kept in free
// lists of the thread instead of going through malloc.
#pragma once

#include <nghttp2/nghttp2.h>

namespace infersched::http2 {

// Shared by all sessions of a thread; a session stays on the thread it was made on.
nghttp2_mem* session_memory();

}  // namespace infersched::http2
