"""`lianfang`: kept tiny, for worker processes import the program's main module again."""


def main() -> None:
    """Run the command line."""
    from nodes.cli.app import run

    run()


if __name__ == "__main__":
    main()
