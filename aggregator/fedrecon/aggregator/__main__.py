"""`python -m fedrecon.aggregator`: runs an aggregator."""

import sys

from fedrecon.aggregator.running import start
from fedrecon.aggregator.settings import AggregatorSettings
from fedrecon.ops.lifecycle import run_service

if __name__ == "__main__":
    sys.exit(run_service("aggregator", start, AggregatorSettings, "aggregator_port"))
