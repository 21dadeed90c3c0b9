"""Measures how unevenly requests arrive, for the batch that adaptive aims for (``window``).

Rule 1. The measure is the index of dispersion of counts: the variance of how many requests come in one tick over their
        mean. It is 1 for Poisson arrivals, and about 1/k for Gamma arrivals of shape k.
Rule 2. The variance is half the mean square of the difference from one tick to the next (von Neumann, 1941), so that
        a load that rises or falls slowly counts as no burst.
Rule 3. It is measured over all models together. Arrivals of models that do not depend on each other have the mean of
        their indices, weighted by load; and where models have their bursts together, GPUs are short together.
Rule 4. Two ticks count only if requests came in both and the second was not LONG: a load that begins or ends is no
        burst, and a tick that lasted long, because nothing happened, says nothing of bursts within it.
"""

from __future__ import annotations

from symphony_dask.engine.native.compiled import compiled
from symphony_dask.engine.state import State

#: How far one tick moves ``bursts``, and what one tick counts as at most.
STEP, MOST = 0.05, 100.0

#: A tick of more ns than this is LONG.
LONG_NS = 400_000_000


@compiled
def tick(s: State, span: int) -> None:
    """Take the tick of ``span`` ns that ends now into ``bursts``."""
    g = s.g[0]
    came = float(g.seq - g.tick_seq)
    before = g.arrival_rate * float(span)
    if came > 0.0 and before > 0.0 and span <= LONG_NS:
        g.bursts += STEP * (min(MOST, (came - before) ** 2 / (came + before)) - g.bursts)
    g.arrival_rate = came / max(1.0, float(span))
    g.tick_seq = g.seq
