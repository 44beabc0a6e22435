"""Programs that hold an engine and time it on demand, each run by the Python that has the engine.

One JSON object a line: `{"work": "prefill", "tokens": N}` or `{"work": "decode", "batch": B,
"context": C, "steps": S}` in, `{"seconds": X}` out, for a whole prompt or for one step; the first
line out says that the model is loaded. They import nothing of this package.
"""
