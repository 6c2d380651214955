"""``python -m pyddfast``, and so ``torchrun ... -m pyddfast``: the command line."""

import sys

from pyddfast.cli import main

if __name__ == "__main__":
    sys.exit(main())
