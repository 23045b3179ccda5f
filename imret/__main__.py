"""`python -m imret` is the `imret` command."""

from typing import NoReturn

from imret.cli.stopping import farewell, heed_signals


def main() -> NoReturn:
    """Run the command line; it can be stopped while it loads, too."""
    try:
        heed_signals()
        from imret.cli.main import main as run

        run()
    except KeyboardInterrupt as stop:
        farewell(stop)


if __name__ == "__main__":
    main()
