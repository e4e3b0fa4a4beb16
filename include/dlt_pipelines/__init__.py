"""Sources and how to load them.

A source is the `SOURCE` of a module `NAME_pipeline`: a `FileSource` or any dlt source. `load` takes either.
"""

import os
from pathlib import Path

# Where dlt looks for .dlt/config.toml, whatever the working directory.
os.environ.setdefault("DLT_PROJECT_DIR", str(Path(__file__).resolve().parent))
