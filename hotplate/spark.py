"""The application file for `spark-submit`: the command `hotplate` with the submitted master."""

import os

from hotplate.__main__ import main

if __name__ == "__main__":
    os.environ.setdefault("HOTPLATE_MASTER", "submitted")
    main()
