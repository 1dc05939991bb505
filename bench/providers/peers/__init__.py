"""Other packages' kernels for the same ops, compared where they are installed.

One file a peer, one function an op: the peer's own call under the signature of the op's torch_op.
"""

from warpwright.bench.case import Provider
from warpwright.bench.providers.peers.apex import APEX
from warpwright.bench.providers.peers.causal_conv1d import CAUSAL_CONV1D
from warpwright.bench.providers.peers.flash_attn import FLASH_ATTN
from warpwright.bench.providers.peers.liger import LIGER
from warpwright.bench.providers.peers.quack import QUACK

#: In the order of the tables.
PEERS: tuple[Provider, ...] = (LIGER, QUACK, FLASH_ATTN, APEX, CAUSAL_CONV1D)

#: Peer -> the distribution whose version says which one was measured.
DISTRIBUTIONS = {
    "liger": "liger-kernel",
    "quack": "quack-kernels",
    "flash-attn": "flash-attn",
    "apex": "apex",
    "causal-conv1d": "causal-conv1d",
}

__all__ = ["DISTRIBUTIONS", "PEERS"]
