"""Names the rules that let a batch start (``policy/starts.py``). Who reads runs imports it: it needs nothing."""

from __future__ import annotations

#: Numbers of the rules, as recorded states have them; 0 in those that were recorded before.
UNKNOWN, BY_WINDOW, BY_FULL, BY_PACKING, BY_CONTENTION, BY_MAX_DELAY = 0, 1, 2, 3, 4, 5
BY_TIMEOUT, BY_LATEST, BY_EAGER, BY_TARGET, BY_TRIAL, BY_PROBE = 6, 7, 8, 9, 10, 11

#: What each says of a batch, by its name, in the order of their numbers.
TEXTS = {
    "unknown": "it was recorded before rules were",
    "window": "its window opened, as one more request could not have joined it in time",
    "full": "it was as large as a batch of its model may be",
    "packing": "fewer GPUs were at work than waiting for windows would use, so it started at once",
    "contention": "batches had to wait for GPUs lately, so it started before its window opened",
    "max_delay": "its first request had waited as long as max_delay allows",
    "timeout": "its first request had waited the part of its SLO that the policy says",
    "latest": "its window was about to close",
    "eager": "the policy starts whatever is queued",
    "target": "it had the size that its model aims for",
    "trial": "only estimates refused its request, which was tried on an idle GPU",
    "probe": "it was given to a slow GPU, to see whether that is fast again",
}

#: Their names, by number.
START_RULES = tuple(TEXTS)
