"""The command line: ``cutline``, or ``python -m cutline``."""

import signal
import sys

from cutline import _native


def main() -> int:
    """Runs the command line with the arguments of this process. Returns the exit status."""
    # Ctrl-C ends the program as it does any other; Python would only take a note of it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return _native.main(["cutline", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
