// Files are mapped into memory. If such a file became shorter, or its disk fails, reading it raises SIGBUS,
// which would end the process.
#pragma once
#include <csetjmp>

// Where this thread continues after such a failed read, set by sigsetjmp. NULL: SIGBUS has its usual effect.
extern thread_local sigjmp_buf *on_failed_read;

// Installs the handler that uses `on_failed_read`, once. Cheap, and safe in several threads at once.
void guard_reads();
