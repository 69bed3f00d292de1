#!/usr/bin/env bash
# Builds the native library with AddressSanitizer and UndefinedBehaviorSanitizer, beside the usual one, and
# runs its tests and changed files with it. Any report ends the process that it is about, and so a test.
set -euo pipefail
cd "$(dirname "$0")/../.."

CXX=${CXX:-g++}
library=$PWD/build/sanitize/_native.so
mkdir -p "${library%/*}"
# shellcheck disable=SC2046
"$CXX" -std=c++17 -shared -fPIC -g -O1 -fno-omit-frame-pointer -ffp-contract=off -fvisibility=hidden \
    -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all -Illc/native/src \
    $(find llc/native/src -name '*.cpp' | sort) -o "$library" -ljpeg -pthread

export LLC_NATIVE_LIBRARY=$library
# Python is not built with the sanitizers, so their run-time libraries have to be there first.
preload="$("$CXX" -print-file-name=libasan.so) $("$CXX" -print-file-name=libubsan.so)"
# detect_leaks=0: Python keeps memory until its end, so that tests count what calls of the library leave
# behind. handle_sigbus=0: that signal is the library's, which handles reads of files that became shorter.
# quarantine_size_mb: freed memory counts as used, but a mutation run has a limit.
export ASAN_OPTIONS=detect_leaks=0:handle_sigbus=0:allow_user_segv_handler=1:quarantine_size_mb=16
export UBSAN_OPTIONS=print_stacktrace=1
export LLC_TEST_PATIENCE=${LLC_TEST_PATIENCE:-10}  # everything is slower

PY=.venv/bin/python
# capture=sys: a report goes to the terminal before the process ends
LD_PRELOAD=$preload $PY -m pytest --quiet --capture=sys \
    tests/native tests/data/test_encode.py tests/hamming/test_search.py
LD_PRELOAD=$preload $PY -m tests.tools.fuzz --mutations=1000 --reader=beton
