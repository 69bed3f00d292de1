"""Moves class codes apart that are closer to each other than codes.min_distance, as the codebook freezes."""

from llc.codebook import health, move_apart
from llc.progress import say


def enforce(network, distance, processes, whose=""):
    """Gives the network's class codes a minimum Hamming distance, as far as there is room; 0: does nothing.

    The same on all processes. whose: words for the message, if it is not the trained network's codebook.
    """
    if not distance:
        return
    before = network.codebook.detach().cpu()
    # By the main process, because another processor might choose differently between nearly equal moves.
    after = processes.on_main(lambda: move_apart(before, distance))
    moved = ((after > 0) != (before > 0)).any(1)
    if moved.any():
        network.codebook.data.copy_(after)
        count = f"{int(moved.sum())} of {len(moved)}"
        say(f"codes.min_distance = {distance}: {count} class codes{whose} were moved", processes)
    if len(after) > 1 and health(after).min_distance < distance:
        say(
            f"warning: codes.min_distance = {distance}: there is no room to move some class codes apart, so "
            "they stay closer to each other; lower it, or raise codes.num_bits",
            processes,
        )
