"""Sources, and the one way to load them.

A source is the value `SOURCE` of the module `NAME_pipeline`: a `CsvSource`, or any source of dlt's. `load` takes it.
"""

import os
from pathlib import Path

# Where dlt looks for .dlt/config.toml, whatever the working directory.
os.environ.setdefault("DLT_PROJECT_DIR", str(Path(__file__).resolve().parent))
