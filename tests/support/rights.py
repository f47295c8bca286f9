"""Commands that may read only what the modes of files allow, also where the tests run as root."""

import os
import shutil

import pytest

#: What such a command begins with. Root may read everything, unless it gives that up.
WITH_RIGHTS_OF_MODES = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
needs_modes = pytest.mark.skipif(
    bool(WITH_RIGHTS_OF_MODES) and shutil.which("setpriv") is None, reason="needs setpriv, or a user other than root"
)
