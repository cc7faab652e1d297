"""`python -m fedrecon.ops` is the `fedrecon` command."""

import sys

from fedrecon.ops.command import main

sys.exit(main())
