"""``python -m snnkernels``: see `snnkernels.cli`."""

import sys

from snnkernels.cli import main

if __name__ == "__main__":
    sys.exit(main())
