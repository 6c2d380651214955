#include "common/device.h"
#include "common/simt.h"

namespace pyddfast {

const char* device_error_string(int error) {
  (void)error;
  return simt::last_error();
}

}  // namespace pyddfast
