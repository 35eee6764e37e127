"""Every benchmark of README.md, and one table of the results at the end: `make bench`.

    python benchmarks/run.py [--data FOLDER] [--threads 1] [--times 5]

Takes some minutes. The ratios say the same on any machine; the figures printed on the way do not.
"""

import bootstrap
import ingest
import kernels
import patch
import startup
import train
from side_by_side import Ratio, find_data, flags, show


def main() -> None:
    arguments = flags(__doc__).parse_args()
    data, threads, times = find_data(arguments.data), arguments.threads, arguments.times
    ratios: list[Ratio] = []
    ratios += startup.compare(3 * times)
    ratios += ingest.compare(ingest.DEFAULT_ROWS, times)
    ratios += train.compare(data, train.EVENTS, threads, times)
    ratios += patch.compare(data, patch.USERS, patch.LOOP_USERS, threads, times)
    ratios += bootstrap.compare(bootstrap.USERS, bootstrap.METRICS, threads, times)
    ratios += kernels.compare(kernels.KERNELS, min(times, 3))
    print()
    show(ratios)


if __name__ == "__main__":
    main()
