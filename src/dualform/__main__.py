"""`python -m dualform` is the command `dualform`."""

import sys

from dualform.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
