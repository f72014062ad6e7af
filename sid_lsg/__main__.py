"""`python -m sid_lsg` is the command line."""

from sid_lsg.cli import start

if __name__ == "__main__":
    start()
