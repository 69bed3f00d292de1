"""KeyboardInterrupt at a chosen line, as Ctrl-C may come at any."""

import sys


def interrupted(call, number, is_traced):
    """Calls call(), and raises KeyboardInterrupt at the line `number` of the traced code -> whether it came.

    is_traced(code object): whether lines of this function count.
    """
    count = 0

    def trace(frame, event, _):
        nonlocal count
        if not is_traced(frame.f_code):
            return None
        if event == "line":
            count += 1
            if count == number:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False
