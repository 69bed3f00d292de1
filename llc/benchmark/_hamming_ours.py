"""What llc itself does in `python -m llc.benchmark hamming`, by this version of llc or by another one.

`llc.benchmark._hamming_beside` also runs this file in another process, where `llc` may be another version.
So it uses only functions that all versions have, and the codes depend on the numbers of a Case alone.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

# Seconds before a call is timed. After a parallel loop OpenMP's threads wait for the next one in a busy loop
# for some ms, which would take the cores from another way.
PAUSE = 0.01


@dataclasses.dataclass(frozen=True)
class Case:
    """What a workload asks of llc, in numbers from which every process makes the same random codes.

    function: search, range_search, pairwise, decode, build (a decoder's table) or pack. queries [n] and
    database [m]; for decoders the database holds the class codes. k: neighbours, or the radius.
    """

    function: str
    num_bits: int
    n: int
    m: int = 1
    k: int = 1

    # Kept, because making 1,281,167 codes of 256 bits takes seconds.
    @functools.cached_property
    def queries(self):
        return random_codes(self.n, self.num_bits, 0)

    @functools.cached_property
    def database(self):
        return random_codes(self.m, self.num_bits, 1)

    @functools.cached_property
    def values(self):
        """What is packed: float32 [n, num_bits]."""
        return np.random.default_rng(0).normal(size=(self.n, self.num_bits)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Clock:
    """How a call is timed.

    seconds: the duration of a turn of a quick call. cpu_time: measure CPU time instead of wall time.
    """

    seconds: float
    cpu_time: bool
    device: str

    def read(self):
        return time.process_time() if self.cpu_time else time.perf_counter()

    def seconds_a_call(self, call):
        """The time of one call, or of a quick call the mean of as many as fill a turn."""
        time.sleep(PAUSE)
        once = self._mean_of(1, call)
        return once if once > self.seconds else self._mean_of(math.ceil(self.seconds / once), call)

    def _mean_of(self, number, call):
        start = self.read()
        for _ in range(number):
            call()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return (self.read() - start) / number


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of llc that is measured. arrays_of: its result -> the arrays in which versions must agree."""

    name: str
    run: Callable
    arrays_of: Callable = lambda result: result

    def digest(self):
        """Calls once -> a digest of the result's bytes, dtypes and shapes."""
        arrays = self.arrays_of(self.run())
        digest = hashlib.sha256()
        for array in arrays if isinstance(arrays, tuple) else (arrays,):
            array = np.ascontiguousarray(torch.as_tensor(array).cpu().numpy())
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(array)
        return digest.hexdigest()


def random_codes(n, num_bits, seed):
    return np.packbits(np.random.default_rng(seed).integers(0, 2, (n, num_bits), dtype=np.uint8), axis=1)


def calls(case, device):
    """The calls of llc that do a case, with its codes on the device already."""
    # Imported here, because the time that a new process takes to import llc is measured.
    from llc import hamming
    from llc.codes import pack_bits

    if case.function == "pack":
        values = torch.from_numpy(case.values).to(device)
        return [Call("llc pack_bits", lambda: pack_bits(values))]
    database = torch.from_numpy(case.database).to(device)
    if case.function == "build":
        some = torch.from_numpy(random_codes(10_000, case.num_bits, 0)).to(device)
        return [
            Call(
                "llc building a table",
                lambda: hamming.Decoder(database, table=True),
                lambda decoder: decoder.mhd(some),
            )
        ]
    queries = torch.from_numpy(case.queries).to(device)
    if case.function == "decode":
        # Made at its first call, because the time of a process's first call is measured.
        decoder = functools.cache(lambda table: hamming.Decoder(database, table=table))
        return [
            Call("llc Decoder, scan", lambda: decoder(False).mhd(queries)),
            Call("llc Decoder, table", lambda: decoder(True).mhd(queries)),
        ]
    function = getattr(hamming, case.function)
    arguments = () if case.function == "pairwise" else (case.k,)
    return [Call(f"llc {case.function}", lambda: function(queries, database, *arguments))]


# ---------------------------------------------------------------------------------- in a process of its own


def serve():
    """Answers requests, one line of JSON each, until there are no more."""
    import llc

    # Ctrl-C ends the benchmark, which then ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not be read as an answer

    def answer(content):
        print(json.dumps(content), file=answers, flush=True)

    answer(llc.__file__)
    ways, clock = {}, None
    for line in sys.stdin:
        request = json.loads(line)
        if "case" in request:
            ways.clear()  # so that its codes are freed before the next are made
            torch.set_num_threads(request["threads"])
            clock = Clock(**request["clock"])
            case = Case(**request["case"])
            ways.update((call.name, call) for call in calls(case, clock.device))
            answer({name: call.digest() for name, call in ways.items()})
        else:
            answer(clock.seconds_a_call(ways[request["time"]].run))


def first(request: dict[str, Any]) -> tuple[float, float]:
    """Seconds of the first and of the second call in this process."""
    torch.set_num_threads(request["threads"])
    clock = Clock(**request["clock"])
    (call,) = calls(Case(**request["case"]), clock.device)[:1]
    return clock.seconds_a_call(call.run), clock.seconds_a_call(call.run)
