"""Run the command line with `python -m sid_lsg`."""

from sid_lsg.cli import start

if __name__ == "__main__":
    start()
