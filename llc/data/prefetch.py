"""Work ahead in a thread that never outlives its use."""

import contextlib
import queue
import threading
import weakref


class Prefetch:
    """Iterates over what the generator `items` yields; a thread runs it, at most `num_ahead` items ahead.

    receive(item) is called on each item in the thread that takes it. When the iteration ends, is closed or is
    dropped (by `break`, by an exception in either thread, by Ctrl-C, at the interpreter's exit), the thread
    has ended and `items` is closed; only if another thread drops it, both happen soon after. What `items`
    raises is raised here, in its place.
    """

    def __init__(self, items, num_ahead, receive=lambda item: item):
        self._queue, self._receive = queue.SimpleQueue(), receive
        self._places, stopped = threading.Semaphore(num_ahead), threading.Event()
        # No reference to self in the thread, or it would never be dropped. A daemon, as the interpreter joins
        # others before it calls finalizers, which are what ends this one.
        self._thread = threading.Thread(
            target=_run, args=(items, self._queue, self._places, stopped), name="llc-prefetch", daemon=True
        )
        starter = threading.current_thread()
        self._end = weakref.finalize(self, _end, self._thread, self._places, stopped, starter)
        self._thread.start()

    def __iter__(self):
        return self

    def __next__(self):
        if not self._end.alive:
            raise StopIteration
        kind, item = self._queue.get()
        if kind == "item":
            self._places.release()
            return self._receive(item)
        self.close()
        raise StopIteration if kind == "end" else item

    def close(self):
        """Ends the thread and waits for its end. Finished items that nobody took are dropped."""
        self._end()
        self._thread.join()
        while not self._queue.empty():
            self._queue.get()


def _run(items, results, places, stopped):
    try:
        while True:
            places.acquire()
            if stopped.is_set():
                return
            item = next(items)
            results.put(("item", item))
            del item  # so that only its taker holds it
    except StopIteration:
        results.put(("end", None))
    except BaseException as error:
        results.put(("error", error))
    finally:
        items.close()


def _end(thread, places, stopped, starter):
    stopped.set()
    places.release()
    # Garbage collection may run in any thread. Were it one that `items` waits for when it is closed, a worker
    # of its pool, the two would wait for each other for ever.
    if threading.current_thread() in (starter, threading.main_thread()):
        with contextlib.suppress(RuntimeError):  # Ctrl-C came before it had started; it will end at once
            thread.join()
