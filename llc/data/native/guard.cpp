#include "guard.h"

#include <csignal>
#include <mutex>

thread_local sigjmp_buf *on_failed_read = nullptr;

namespace {

struct sigaction before;

void failed(int number, siginfo_t *info, void *) {
    const int code = info->si_code;
    const bool read = code == BUS_ADRERR || code == BUS_OBJERR || code == BUS_MCEERR_AR;  // else somebody sent it, or memory is broken elsewhere
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
        action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;  // NODEFER: siglongjmp leaves the handler without a mask to restore
        sigemptyset(&action.sa_mask);
        sigaction(SIGBUS, &action, &before);
    });
}
