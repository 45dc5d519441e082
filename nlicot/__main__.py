"""`python -m nlicot`."""

import sys

from nlicot.cli import main

if __name__ == "__main__":
    sys.exit(main())
