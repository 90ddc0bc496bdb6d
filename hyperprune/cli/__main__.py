"""``python -m hyperprune.cli``."""

import sys

from hyperprune.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
