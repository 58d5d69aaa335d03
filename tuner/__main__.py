"""`tuner`, and `python -m tuner`."""

import sys

from tuner import process


def main() -> int:
    """Hide the command line's secrets first: what comes after is imported for longer than anybody needs to look."""
    process.begin(sys.argv[1:])
    from tuner import cli

    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
