"""`python -m btrain` is the command `btrain`."""

from btrain.cli import main

if __name__ == "__main__":
    main()
