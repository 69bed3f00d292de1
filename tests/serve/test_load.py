"""Many clients at once while another process changes the index: each answer is of one committed state."""

import http.client
import subprocess
import sys
import threading
import time

import numpy as np

from llc.index.index import Index
from tests.conftest import ROOT
from tests.serve import writer
from tests.serve.server import serving
from tests.waiting import seconds

THREADS, REQUESTS, GENERATIONS, K = 8, 50, 40, 12


def states_of(path, queries):
    """For each state of the index, from the first to the last: the answer to each query."""
    index, states = Index.open(path), []
    for generation in range(GENERATIONS + 1):
        if generation:
            writer.change(index, generation)
        distances, ids = index.search(queries, K)
        records = [index.records(row) for row in ids]
        states.append(
            [
                [
                    (distance, id, file, index.class_names[label])
                    for distance, id, file, label in zip(
                        distances[i].tolist(), ids[i].tolist(), found.files, found.labels.tolist()
                    )
                ]
                for i, found in enumerate(records)
            ]
        )
    return states


def test_every_answer_under_load_is_of_one_state(photos, encoder, image_tree, tmp_path):
    path = tmp_path / "changing.index"
    index = Index(20)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (400, 3), np.uint8) & np.array([255, 255, 240], np.uint8)
    labels, files = rng.integers(0, 6, 400), [f"0/{id}.png" for id in range(400)]
    index.add(codes, labels=labels, class_names=photos.class_names, files=files)
    index.set_model(encoder)
    index.save(path)

    images = sorted((image_tree / "val").glob("*/00[12].*"))[:3]
    queries = np.concatenate([codes[:5], encoder.encode(images).numpy()])
    bodies = [{"code": code.tobytes().hex()} for code in codes[:5]] + [file.read_bytes() for file in images]
    states = states_of(path, queries)
    assert all(before != after for before, after in zip(states, states[1:]))

    errors, counts, moves = [], [0] * THREADS, [0] * THREADS
    with serving(path, tmp_path, "--refresh=0.05") as server:
        with subprocess.Popen(
            [sys.executable, "-m", "tests.serve.writer", str(path), str(GENERATIONS)], cwd=ROOT
        ) as process:

            def client(number):
                connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=seconds(60))
                generation, order = 0, np.random.default_rng(number)
                while (counts[number] < REQUESTS or process.poll() is None) and not errors:
                    which = int(order.integers(len(bodies)))
                    answer = server.search(bodies[which], f"k={K}", connection=connection)
                    found = [
                        tuple(neighbour[key] for key in ("distance", "id", "file", "label"))
                        for neighbour in answer["neighbours"]
                    ]
                    # the first state that gives this answer, and is not older than what this client has seen
                    while generation < len(states) and states[generation][which] != found:
                        generation += 1
                        moves[number] += 1
                    if generation == len(states):
                        errors.append((which, found))
                    counts[number] += 1
                connection.close()

            threads = [threading.Thread(target=client, args=(number,)) for number in range(THREADS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert process.wait() == 0
        assert not errors and min(counts) >= REQUESTS
        assert max(moves) > 3  # the index did change meanwhile
        end = time.monotonic() + seconds(20)
        last = [(distance, id) for distance, id, *_ in states[-1][0]]
        while True:
            answer = server.search(bodies[0], f"k={K}")
            if [(found["distance"], found["id"]) for found in answer["neighbours"]] == last:
                break
            assert time.monotonic() < end, "the last state was not taken over"
            time.sleep(0.05)
