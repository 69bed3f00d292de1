"""Which model the figures of a file are of, as the files of scores and curves say, and as a report reads."""

import dataclasses
import json
from typing import Any

from llc import checkpoints
from llc.data.sources import printable
from llc.network import Network

DESCRIPTION = "description"  # the array of a file of scores that holds an Origin, as JSON
FORMAT = 1
_DIGITS = 16  # of a network's digest: enough to tell networks apart


@dataclasses.dataclass(frozen=True)
class Origin:
    """What was measured. model: as it was named; network: `digest` of its network, "" for codes alone."""

    model: str
    network: str

    @classmethod
    def of(cls, title: str, digest: str) -> "Origin":
        """digest: of the network, as llc.checkpoints.digest gives it; "" if it is unknown."""
        return cls(printable(title), digest[:_DIGITS])

    def description(self) -> str:
        """Itself as JSON."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)})

    @classmethod
    def restore(cls, values: Any) -> "Origin | None":
        """The Origin in values of `description`, or in a line of a CSV file; None if there is none."""
        if not isinstance(values, dict):
            return None
        found = [values.get(field.name) for field in dataclasses.fields(cls)]
        return cls(*found) if all(isinstance(value, str) for value in found) else None


def digest(network: Network) -> str:
    """16 hexadecimal digits, the first ones of `llc.checkpoints.digest`."""
    return checkpoints.digest(network)[:_DIGITS]
