"""pyddfast: fast, exact building blocks for dataset distillation research.

``from pyddfast import ops`` gives the fused operators, and imports torch and nothing else heavy.
``pyddfast.models``, ``data``, ``train``, ``methods`` and ``coresets`` build on them, each a layer
that imports only the layers before it.
"""

from pyddfast._version import __version__

__all__ = ["__version__"]
