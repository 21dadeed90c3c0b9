"""Decides who goes first in overload, when requests have to be dropped.

Rule 1. The engine is crowded while more than CROWDED of its requests are dropped, smoothed over some TICKs. Only then
        do the rules below hold.
Rule 2. A level of GPU time is drawn as water finds its own: models that lose hardly any request and use less than the
        level keep what they use, and the level is what all others would have if they shared the rest alike.
Rule 3. Models that use less than the level, and much less than some other, are ready before all that do not: so one
        that asks for less than its share is served, and of those that ask for more none starves. Their windows open
        earlier by the mean time of LEAD dispatches, because a GPU must come free inside them.
Rule 4. A model with requests of high priority is ready as early as those of rule 3.
"""

from __future__ import annotations

from symphony_dask.engine.native.compiled import compiled
from symphony_dask.engine.policy import window
from symphony_dask.engine.state import IDLE, REMOVED, UNUSED, State

#: How often shares are looked at, ns, and how much of a count is left after one TICK.
TICK_NS, KEPT = 100_000_000, 0.85

#: Share of dropped requests from which the engine is crowded, and a model counts as losing requests.
CROWDED, LOSING = 0.02, 0.01

#: What share of the level a model must be below to go first, and how many times as much some other must use.
BELOW, UNEVEN = 0.95, 1.5

#: How many dispatches the window of a model that is below the level opens early.
LEAD = 4


@compiled
def tick(s: State, now: int) -> None:
    """Draw the level anew and let the models below it go first."""
    g = s.g[0]
    batches = g.next_batch - g.tick_batch
    g.lead = LEAD * (now - g.ticked_at) // batches if batches > 0 else 0
    kept = 1.0
    for _ in range(min(30, (now - g.ticked_at) // TICK_NS)):
        kept *= KEPT
    g.ticked_at = now
    g.tick_batch = g.next_batch
    served = 0.0
    dropped = 0.0
    for m in range(len(s.mod)):
        mod = s.mod[m]
        served += mod.served
        dropped += mod.dropped
    g.lost = dropped / max(1.0, served + dropped)
    was = g.crowded
    g.crowded = 1 if dropped > CROWDED * (served + dropped) else 0
    if g.crowded == 1 or was == 1:
        level = _level(s) if g.crowded == 1 else 0.0
        most = 0.0
        for m in range(len(s.mod)):
            most = max(most, s.mod[m].used)
        level = min(BELOW * level, most / UNEVEN)
        for m in range(len(s.mod)):
            mod = s.mod[m]
            if mod.state == UNUSED or mod.state == REMOVED:
                continue
            if g.crowded != was and g.rules > 0:
                window.retarget(s, m)
            under = 1 if mod.used < level else 0
            changed = under != mod.under or under == 1 or g.crowded != was
            mod.under = under
            if changed and mod.state != IDLE:
                window.look(s, m, now)
    for m in range(len(s.mod)):
        mod = s.mod[m]
        mod.used *= kept
        mod.served *= kept
        mod.dropped *= kept


@compiled
def _level(s: State) -> float:
    """GPU time that each model beyond its share would have if these shared alike (rule 2)."""
    level = 0.0
    while True:
        rest = 0.0
        sharing = 0
        for m in range(len(s.mod)):
            mod = s.mod[m]
            losing = mod.dropped > LOSING * (mod.served + mod.dropped)
            if mod.served + mod.dropped > 0.0 and (losing or mod.used >= level):
                rest += mod.used
                sharing += 1
        if sharing == 0 or rest / sharing <= level * 1.001:
            return level
        level = rest / sharing
