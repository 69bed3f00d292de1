"""The exponential moving average of a network's weights."""

import copy

import torch
from torch import nn


class AveragedNetwork(nn.Module):
    """The moving average of a network's weights and running statistics, in `module`, a copy of the network.

    average = decay * average + (1 - decay) * value; the first `update` copies. The state dict has the keys of
    torch.optim.swa_utils.AveragedModel. That class waits for the GPU at each step, because it copies its
    counter there; here the counter stays on the host.
    """

    def __init__(self, network, decay):
        super().__init__()
        self.module, self.decay = copy.deepcopy(network), decay
        self.register_buffer("n_averaged", torch.tensor(0))
        pairs = [
            (own.detach(), value.detach())
            for own, value in zip(_tensors(self.module), _tensors(network), strict=True)
        ]
        # lists, for one call on all of them; integers (batch norm's counters) have no average and are copied
        self._averaged = [
            list(side) for side in zip(*(pair for pair in pairs if pair[0].is_floating_point()))
        ]
        self._copied = [
            list(side) for side in zip(*(pair for pair in pairs if not pair[0].is_floating_point()))
        ]

    @torch.no_grad()
    def update(self):
        """Moves the average towards the network as it is now; never waits for the device."""
        if self.n_averaged == 0:
            torch._foreach_copy_(*self._averaged)
        else:
            torch._foreach_lerp_(*self._averaged, 1 - self.decay)
        if self._copied:
            torch._foreach_copy_(*self._copied)
        self.n_averaged += 1


def _tensors(network):
    return [*network.parameters(), *network.buffers()]
