// A device guard for CUDA that does nothing. PyTorch asks a backend's guard which device it is on before it lets a
// tensor say that it lies there; a build for the CPU has none for CUDA.
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace c10::impl {
C10_REGISTER_GUARD_IMPL(CUDA, NoOpDeviceGuardImpl<DeviceType::CUDA>);
}
