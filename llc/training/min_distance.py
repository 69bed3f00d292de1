"""Moves class codes apart that are closer to each other than codes.min_distance, as the codebook freezes."""

from llc.codebook import fits, health, move_apart
from llc.progress import say


def enforce(network, codes, processes, whose=""):
    """Gives the network's class codes the distance codes.min_distance, as far as there is room; 0: none.

    codes: llc.recipe.Codes; with codes.nested the first bits alone get it, if they are enough. The same on
    all processes. whose: words for the message, if it is not the trained network's codebook.
    """
    distance = codes.min_distance
    if not distance:
        return
    before = network.codebook.detach().cpu()
    # By the main process, because another processor might choose differently between nearly equal moves.
    after = processes.on_main(lambda: _moved_apart(before, distance, codes.prefixes))
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


def _moved_apart(codebook, distance, prefixes):
    codebook = codebook.clone()
    for bits in prefixes[:-1]:  # distances in longer prefixes are at least those in shorter ones
        if fits(len(codebook), bits, distance):
            first = move_apart(codebook[:, :bits], distance)
            if health(first).min_distance >= distance:  # else its bits would be moved for nothing
                codebook[:, :bits] = first
    return move_apart(codebook, distance)
