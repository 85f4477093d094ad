"""The command `hotplate`.

`main` finds the module of a verb. Modules of verbs (`publish`, `train`, …) declare options and help, and load quickly.
If the work of a verb needs heavy libraries, such as numpy, it is in a module such as `publish_work`, which the verb
imports when it is called. `flags` turns annotated fields into options, `options` declares those of several verbs,
`help_pages` prints the help, `terminal` everything else.
"""

import os
import sys

# Values of a variable that click reads as False.
FALSE = {"", "0", "false", "f", "no", "n", "off"}


def wants_json() -> bool:
    """Return whether errors are to be printed as JSON, by the command line or HOTPLATE_JSON."""
    return "--json" in sys.argv or os.environ.get("HOTPLATE_JSON", "").lower() not in FALSE
