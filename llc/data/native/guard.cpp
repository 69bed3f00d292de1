#include "guard.h"

#include <csignal>
#include <mutex>

thread_local sigjmp_buf *on_failed_read = nullptr;

namespace {

struct sigaction before;

void failed(int number, siginfo_t *, void *) {
    if (on_failed_read) siglongjmp(*on_failed_read, 1);
    sigaction(number, &before, nullptr);  // the read is tried again, and fails under the handler that was there
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
