// libjpeg-turbo's calls, and what happens at their errors.
#pragma once
#include <csetjmp>
#include <cstdio>

#include <jpeglib.h>

#include <jerror.h>

#ifndef LIBJPEG_TURBO_VERSION
#error "llc needs libjpeg-turbo (its jpeg_crop_scanline); Debian and Ubuntu call it libjpeg-dev"
#endif

// libjpeg itself would print an error and exit. Here an error ends `run` by a jump. A warning does too,
// because it means damaged data; only warnings about markers that do not concern the pixels are ignored.
class LibjpegErrors : public jpeg_error_mgr {
public:
    LibjpegErrors() {
        jpeg_std_error(this);
        error_exit = fail;
        emit_message = [](j_common_ptr jpeg, int level) {
            const int code = jpeg->err->msg_code;
            if (level < 0 && code != JWRN_JFIF_MAJOR && code != JWRN_ADOBE_XFORM) fail(jpeg);
        };
    }
    LibjpegErrors(const LibjpegErrors &) = delete;
    LibjpegErrors &operator=(const LibjpegErrors &) = delete;

    // All calls of libjpeg that may fail are made within `calls`. False if one has failed. The jump skips
    // destructors: an object that has one must not be made within `calls`.
    template <typename Calls>
    __attribute__((noinline)) bool run(Calls calls) {
        if (setjmp(jump)) return false;
        calls();
        return true;
    }

    [[noreturn]] static void fail(j_common_ptr jpeg) {
        longjmp(static_cast<LibjpegErrors *>(jpeg->err)->jump, 1);
    }

private:
    jmp_buf jump;
};
