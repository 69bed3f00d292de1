#include "guard.h"

#include <csignal>

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
    // Once per process. std::call_once would need glibc 2.34, and wheels are for 2.28.
    static const bool installed = [] {
        struct sigaction action = {};
        action.sa_sigaction = failed;
        // NODEFER: siglongjmp leaves the handler, and there is no mask to restore
        action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
        sigemptyset(&action.sa_mask);
        return sigaction(SIGBUS, &action, &before) == 0;
    }();
    (void)installed;
}
