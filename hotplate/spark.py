"""What `spark-submit` runs: the command `hotplate`, whose `--master` is then the one that it was submitted to."""

import os

from hotplate.__main__ import main

if __name__ == "__main__":
    os.environ.setdefault("HOTPLATE_MASTER", "submitted")
    main()
