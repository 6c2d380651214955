#include "common/device.h"
#include "common/simt.h"

namespace pyddfast {

const char* device_error_string(int error) { return simt::error_string(error); }

}  // namespace pyddfast
