"""`python -m flashvideo` is the `flashvideo` command."""

import sys

from flashvideo.cli import main

if __name__ == "__main__":
    sys.exit(main())
