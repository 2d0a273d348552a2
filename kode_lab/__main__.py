"""``python -m kode_lab``: the command line, where its script is not on the path."""

import sys

from kode_lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
