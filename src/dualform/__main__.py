"""`python -m dualform` is the command `dualform`."""

from dualform.cli.main import main

if __name__ == "__main__":
    main()
