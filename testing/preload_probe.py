"""Last in the forkserver's preload list, records what that process had loaded before it."""

import os
import sys

IMPORTED_BY = os.getpid()
MODULES_BEFORE = sorted(sys.modules)
