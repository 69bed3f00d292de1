// Files are mapped into memory. Where such a file has become shorter, or its disk fails, reading it is a
// SIGBUS, which would end the process.
#pragma once
#include <csetjmp>

// Where this thread goes on when a read fails so, set by sigsetjmp; NULL: what would have happened without
// this library happens.
extern thread_local sigjmp_buf *on_failed_read;

// From the first call on, `on_failed_read` is heeded. Cheap, and safe in several threads at once.
void guard_reads();
