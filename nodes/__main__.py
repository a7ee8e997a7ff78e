"""`lianfang`: kept tiny, for worker processes import the program's main module again."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is still loading ends it without a traceback."""
    try:
        from nodes.cli.app import run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
