// Vectors that are compiled by GCC 11 and later call this function of libstdc++ for lengths that no memory can
// hold. The libstdc++ of manylinux_2_28 does not have it, so the library brings its own.
#include <new>

namespace std {
[[noreturn]] __attribute__((weak, visibility("hidden"))) void __throw_bad_array_new_length() {
    throw std::bad_alloc();
}
}  // namespace std
