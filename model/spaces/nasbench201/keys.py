"""What a config says of a space of NAS-Bench-201."""

from dataclasses import dataclass

from utils.config import Count, key


@dataclass(frozen=True)
class CellKeys:
    """The key `space` of a supernet of cells.

    It is about the network of the benchmark, whose costs and accuracies are searched, and about
    how much of it the supernet has.
    """

    channels: Count = key(16, "of the network's first stage")
    cells: Count = key(5, "in each stage of the network")
    supernet_cells: Count = key(1, "in each stage of the supernet")
    image_size: Count = key(32, "side of the network's images; the supernet's is `input_size`")
