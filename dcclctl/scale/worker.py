"""A process that works on shards; started by dcclctl.scale.processes.

It reads a task and then numbers of shards from stdin, one a line, and answers on stdout. It ends when its stdin ends, so it
does not outlive the process that started it for longer than one shard takes.
"""

import json
import os
import sys
import time
from typing import Any

#: seconds between two answers about how much is done
_PAUSE = 0.25


def main() -> None:
    """Work until there is no more."""
    from dcclctl.compute import own_process

    own_process()  # before torch is imported
    from dcclctl.scale.processes import error_document
    from dcclctl.scale.task import ShardTask

    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is no answer

    def answer(document: dict[str, Any]) -> None:
        answers.write(json.dumps(document) + "\n")

    try:
        on_shard = None
        task = ShardTask.parse(sys.stdin.readline())
        for line in sys.stdin:
            on_shard = on_shard or task.join()
            waiting, last = 0.0, time.monotonic()

            def on_done(amount: float) -> None:
                nonlocal waiting, last
                waiting += amount
                if time.monotonic() - last >= _PAUSE:
                    answer({"done": waiting})
                    waiting, last = 0.0, time.monotonic()

            on_shard(int(line), on_done)
            answer({"done": waiting})
            answer({"finished": True})
    except BrokenPipeError:
        pass  # nobody waits for the answer any more
    except BaseException as error:
        answer({"error": error_document(error)})


if __name__ == "__main__":
    main()
