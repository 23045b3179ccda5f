"""`python -m imret` is the `imret` command."""

from imret.cli.main import main

if __name__ == "__main__":
    main()
