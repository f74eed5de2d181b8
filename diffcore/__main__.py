"""`python -m diffcore` is the command `diffcore`, for `torchrun -m diffcore` too."""

from diffcore.cli import main

if __name__ == "__main__":
    main()
