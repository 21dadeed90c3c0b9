"""Draws ``eager-and-deferred.svg``, the README's picture: ``python docs/img/eager_and_deferred.py``.

The requests of ``symphony demo`` (part of the bundled Azure trace, 80 times as fast) on four simulated GPUs, under each
policy; 0.42 s of it are drawn.
"""

from __future__ import annotations

from pathlib import Path

from workloads.live.demo import GPUS, demo_trace
from workloads.simulation.result import SimModel, Simulated
from workloads.simulation.simulate import simulate
from workloads.traces.synthetic_arrivals import assign
from workloads.traces.zoo import ZOO, equal

SLOS_MS = {"resnet50": 60, "resnet50-variant": 120}
COLOURS = ("#0072B2", "#E69F00")
FROM_S, SECONDS = 14.72, 0.42
LEFT, WIDTH, ROW, TOP = 60, 780, 20, 26


def served(policy: str) -> Simulated:
    arrivals, speed = demo_trace()
    models = [SimModel(name, ZOO[name].profile, slo * 1_000_000) for name, slo in SLOS_MS.items()]
    choices = assign(len(arrivals), equal(len(models)), seed=0)
    return simulate(models, GPUS, (arrivals / speed).astype("int64"), choices, policy=policy)


def panel(policy: str, top: int) -> str:
    run = served(policy)
    in_time = (run.finish_ns <= run.deadlines_ns)[run.finish_ns >= 0].sum() / len(run.finish_ns)
    busy = (run.batch_end_ns - run.batch_start_ns).sum() / run.span_ns
    out = [
        f'<text x="{LEFT}" y="{top - 8}"><tspan font-weight="bold">{policy}</tspan>: '
        f"{run.batch_size.mean():.1f} requests in a batch, {busy:.2f} of {GPUS} GPUs busy, "
        f"{in_time:.1%} answered in time</text>"
    ]
    for gpu in range(GPUS):
        y = top + gpu * ROW
        out.append(f'<rect x="{LEFT}" y="{y}" width="{WIDTH}" height="{ROW - 3}" fill="#f2f2f2"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end">GPU {gpu}</text>')
    scale = WIDTH / SECONDS
    for gpu, model, size, start_ns, end_ns in zip(
        run.batch_gpu, run.batch_model, run.batch_size, run.batch_start_ns, run.batch_end_ns, strict=True
    ):
        start, end = (max(0.0, min(SECONDS, t / 1e9 - FROM_S)) for t in (start_ns, end_ns))
        if start >= end:
            continue
        x, width, y = LEFT + start * scale, (end - start) * scale, top + gpu * ROW
        out.append(f'<rect x="{x:.1f}" y="{y}" width="{width - 0.6:.1f}" height="{ROW - 3}" fill="{COLOURS[model]}"/>')
        if width > 16:
            out.append(f'<text x="{x + width / 2:.1f}" y="{y + 13}" text-anchor="middle" fill="#fff">{size}</text>')
    return "\n".join(out)


def picture() -> str:
    second = TOP + GPUS * ROW + 34
    height = second + GPUS * ROW + 40
    legend = "".join(
        f'<rect x="{LEFT + 150 * i}" y="{height - 28}" width="12" height="12" fill="{COLOURS[i]}"/>'
        f'<text x="{LEFT + 18 + 150 * i}" y="{height - 18}">{name}</text>'
        for i, name in enumerate(SLOS_MS)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 10} {height}" role="img" '
        f'aria-label="Batches on four GPUs, eager above, deferred below">'
        f'<style>text{{font:12px sans-serif}}</style><rect width="100%" height="100%" fill="#fff"/>\n'
        f"{panel('eager', TOP)}\n{panel('deferred', second)}\n{legend}"
        f'<text x="{LEFT + WIDTH}" y="{height - 18}" text-anchor="end">{SECONDS:g} s of the run, simulated; '
        f"numbers are requests in a batch</text></svg>\n"
    )


if __name__ == "__main__":
    Path(__file__).with_name("eager-and-deferred.svg").write_text(picture())
