"""`python -m proteus_shards` is `proteus-shards`."""

import sys

from proteus_shards.cli import main

if __name__ == "__main__":
    sys.exit(main())
