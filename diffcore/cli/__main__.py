"""`python -m diffcore.cli` is the command `diffcore`."""

from diffcore.cli import main

if __name__ == "__main__":
    main()
