"""`python -m pipeline`: the same as `minicodformer`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # `-m` puts the working directory first on the path; a folder called `shards` there is data, not code.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.cli import main

    main()
