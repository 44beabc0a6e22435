"""What all workers have in common: say that the model is loaded, then time what is asked.

Standard library alone, since it runs in the environments of the peers.
"""

import json
import sys
from collections.abc import Callable
from typing import Any


def answer_requests(seconds: Callable[[dict[str, Any]], float]) -> None:
    """Answer until standard input ends; a failure of the engine is an answer too."""
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        try:
            answer: dict[str, Any] = {"seconds": seconds(json.loads(line))}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
