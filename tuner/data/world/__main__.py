"""`python -m tuner.data.world [folder]` writes the sample data sets into `folder`, by default `data`."""

import sys
from pathlib import Path

from tuner.data.world.sets import write

if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "data"))
