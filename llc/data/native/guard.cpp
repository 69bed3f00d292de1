#include "guard.h"

#include <csignal>
#include <mutex>

thread_local sigjmp_buf *on_failed_read = nullptr;

namespace {

struct sigaction before;

void failed(int number, siginfo_t *info, void *) {
    const int code = info->si_code;
    // else somebody sent it, or memory is broken elsewhere
    const bool read = code == BUS_ADRERR || code == BUS_OBJERR || code == BUS_MCEERR_AR;
    if (read && on_failed_read) siglongjmp(*on_failed_read, 1);
    sigaction(number, &before, nullptr);
    if (!read) raise(number);  // a read is tried again by itself, and fails under the handler that was there
}

}  // namespace

void guard_reads() {
    static std::once_flag once;
    std::call_once(once, [] {
        struct sigaction action = {};
        action.sa_sigaction = failed;
        // NODEFER: siglongjmp leaves the handler without a mask to restore
        action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
        sigemptyset(&action.sa_mask);
        sigaction(SIGBUS, &action, &before);
    });
}
