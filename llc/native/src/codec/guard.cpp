#include "guard.h"

#include <csignal>
#include <mutex>

thread_local sigjmp_buf *on_failed_read = nullptr;

namespace {

struct sigaction before;

void failed(int number, siginfo_t *info, void *) {
    const int code = info->si_code;
    // otherwise somebody sent the signal, or other memory is broken
    const bool read = code == BUS_ADRERR || code == BUS_OBJERR || code == BUS_MCEERR_AR;
    if (read && on_failed_read) siglongjmp(*on_failed_read, 1);
    sigaction(number, &before, nullptr);
    if (!read) raise(number);  // the read is repeated and fails again, under the previous handler
}

}  // namespace

void guard_reads() {
    static std::once_flag once;
    std::call_once(once, [] {
        struct sigaction action = {};
        action.sa_sigaction = failed;
        // NODEFER: siglongjmp leaves the handler, and there is no mask to restore
        action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
        sigemptyset(&action.sa_mask);
        sigaction(SIGBUS, &action, &before);
    });
}
