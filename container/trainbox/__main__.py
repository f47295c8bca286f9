"""`python -m trainbox` is the command `trainbox`."""

import sys

from trainbox.cli import main

sys.exit(main())
