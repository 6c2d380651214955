"""Official codebases' names and signatures over the fused operators, a module a codebase.

One line after the codebase's own imports takes their place::

    from utils import *
    from pyddfast.compat.sre2l import *

Everything here means what the official code means, its peculiarities included; each page of
``docs/drop-in/`` lists them.  :mod:`pyddfast.methods` has the methods without them.
"""
