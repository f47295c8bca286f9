"""`python -m trainbox.launch`: the former name of `python -m trainbox.supervisor`, kept for one version."""

import sys

from trainbox.supervisor.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
