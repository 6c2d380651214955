// Errors of the device code as text, without CUDA headers.
#pragma once

namespace pyddfast {

const char* device_error_string(int error);

}  // namespace pyddfast
