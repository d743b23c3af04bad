"""What a config says of a space of NAS-Bench-201."""

from dataclasses import dataclass

from utils.config import key
from utils.ranges import Channels, Depth, Pixels


@dataclass(frozen=True)
class CellKeys:
    """The key `space` of a supernet of cells.

    It is about the network of the benchmark, whose costs and accuracies are searched, and about
    how much of it the supernet has.
    """

    channels: Channels = key(16, "of the network's first stage")
    cells: Depth = key(5, "in each stage of the network")
    supernet_cells: Depth = key(1, "in each stage of the supernet")
    supernet_channels: Channels | None = key(None, "of its first stage; none: `channels`")
    image_size: Pixels = key(32, "side of the network's images; the supernet's is `input_size`")
