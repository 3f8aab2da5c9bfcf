"""The six networks of the LoADPart paper and a trained one, as MindSpore cells, for exporting into a model store.

Once exported, a network is only a file in the store. Importing this package does not import MindSpore;
building a network does.
"""

from loadpart_common.engines.mindspore.zoo.catalog import NETWORKS, NetworkInfo
from loadpart_common.engines.mindspore.zoo.export import FORMAT, export, export_synthetic

__all__ = ["FORMAT", "NETWORKS", "NetworkInfo", "export", "export_synthetic"]
