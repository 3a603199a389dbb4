"""`python -m deftx` is `deftx`."""

from deftx.cli import main

if __name__ == "__main__":
    main()
