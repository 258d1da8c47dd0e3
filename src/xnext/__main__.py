"""`python -m xnext` is the `xnext` command."""

import sys

from xnext.cli import main

if __name__ == "__main__":
    sys.exit(main())
