"""Commands of the workloads: demo, bench, bound, goodput, simulate, replay; compare and trace have their own files."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import click
from click.core import ParameterSource

from symphony_dask.cli.scheduler_address import scheduler_option
from symphony_dask.cli.serve import command, json_option, note_partial, print_json
from workloads.cli.compare import compare
from workloads.cli.report import COMMANDS as REPORT_COMMANDS
from workloads.cli.trace import trace


def profiles_option(*, required: bool) -> Any:
    text = """l(b): "alpha,beta" in ms, or CLASS=alpha,beta for one of several GPU classes; can be repeated."""
    return click.option("--profile", "profile_texts", multiple=True, required=required, help=text)


gpus_option = click.option(
    "--gpus", "gpus_text", required=True, help='How many GPUs, or how many of each class as they fill: "4xfast,8xslow".'
)


@click.command()
@click.option("--torch", is_flag=True, help="Serve a torch network on the CPU and check each answer.")
@click.option("--folder", type=click.Path(), help="Where the runs are recorded; by default symphony-runs/demo-TIME.")
@json_option
@command
def demo(torch: bool, folder: str | None, as_json: bool) -> None:
    """Replay a real trace on a real cluster with emulated GPUs: eager against deferred batching."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table

    from workloads.live import demo as demos

    errors = Console(stderr=True)
    columns = (TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors) as progress:
        waiting = progress.add_task("starting", total=None)
        tasks: dict[str, Any] = {}

        def on_progress(policy: str, done: int, total: int) -> None:
            if policy not in tasks:
                progress.update(waiting, visible=False)
                tasks[policy] = progress.add_task(policy, total=total)
            progress.update(tasks[policy], completed=done)

        results = demos.demo(folder, torch=torch, on_progress=on_progress)
    if as_json:
        print_json(results)
        return
    table = Table(title=f"Azure LLM trace at {demos.SPEED:g}x, {next(iter(results.values()))['label']}")
    heads = ("policy", "offered\nreq/s", "SLO attain-\nment", "goodput\nreq/s", "p50\nms", "p99\nms")
    for head in (*heads, "mean\nbatch", "busy\nGPUs"):
        table.add_column(head, justify="left" if head == "policy" else "right", no_wrap=True)
    for policy, r in results.items():
        rates = (f"{r['offered_hz']:,.0f}", f"{r['attainment']:.2%}", f"{r['goodput_hz']:,.0f}")
        times = (f"{r['p50_ms']:.1f}", f"{r['p99_ms']:.1f}")
        table.add_row(policy, *rates, *times, f"{r['mean_batch']:.1f}", f"{r['busy_gpus']:.2f}")
    console = Console()
    console.print(table)
    for policy, r in results.items():
        if torch:
            console.print(f"{policy}: {r['wrong_answers']} answers differ from the network run alone")
        console.print(f"{policy} run: {r['run']}", soft_wrap=True)
    if any(r["wrong_answers"] for r in results.values()):
        raise click.ClickException("some answers differ from the network run alone")


@click.group()
def bench() -> None:
    """Measure this machine, beside what is compared to."""


@bench.command()
@click.option("--requests", default=2_000_000, show_default=True, help="How many in all.")
@click.option("--batch", default=32, show_default=True, help="Largest batch.")
@click.option("--payload", default=100, show_default=True, help="Bytes of each request.")
@json_option
@command
def memory(requests: int, batch: int, payload: int, as_json: bool) -> None:
    """Resident memory of scheduler, workers and client over millions of requests."""
    from workloads.bench.memory import bench_memory

    found = bench_memory(
        requests=requests, batch=batch, payload_bytes=payload, on_progress=lambda text: click.echo(text, err=True)
    )
    if as_json:
        print_json(found)
        return
    click.echo(f"{found['requests']:,} requests at {found['rate_hz']:,.0f} a second; MiB after the first tenth")
    for row in found["rows"]:
        click.echo(
            f"  {row['process']:10} {row['begin_mib']:7.1f}, at most {row['most_mib']:7.1f} ({row['growth']:+.1%}), "
            f"at the end {row['end_mib']:7.1f}"
        )


@bench.command()
@click.option("--batch", default=8, show_default=True, help="Largest batch.")
@click.option("--payload", default=100, show_default=True, help="Bytes of each request.")
@click.option("--seconds", default=5.0, show_default=True, help="Length of each measurement.")
@click.option(
    "--rate", "rates", type=float, multiple=True, help="Of the open loops, req/s; by default 1,000 to 20,000."
)
@json_option
@command
def live(batch: int, payload: int, seconds: float, rates: tuple[float, ...], as_json: bool) -> None:
    """Requests a second over the lane, l(b)=0, beside plain client.submit."""
    from workloads.bench.live import OPEN_LOOP_HZ, bench_live

    result = bench_live(
        batch=batch, payload_bytes=payload, seconds=seconds, open_loop_hz=rates or OPEN_LOOP_HZ,
        on_progress=lambda text: click.echo(text, err=True),
    )  # fmt: skip
    if as_json:
        print_json(result)
        return
    click.echo(f"lane, closed loop    {result['lane_hz']:12,.0f} req/s  (mean batch {result['mean_batch']:.1f})")
    click.echo(f"scheduler CPU        {result['scheduler_cpu_us']:12,.1f} us/req")
    click.echo(f"futures, closed loop {result['client_hz']:12,.0f} req/s")
    click.echo(f"plain client.submit  {result['dask_submit_hz']:12,.0f} tasks/s")
    click.echo(f"ratio                {result['ratio']:12.1f}")
    for row in result["open_loop"]:
        rate, p50, p99 = row["rate_hz"], row["p50_ms"], row["p99_ms"]
        click.echo(f"open loop            {rate:12,.0f} req/s  p50 {p50:.2f} ms  p99 {p99:.2f} ms")


@bench.command()
@click.option("--setting", "names", multiple=True, help="Of the table below; by default all.")
@click.option("--policy", default="adaptive", show_default=True, help="A policy of the engine.")
@click.option("--seconds", default=8.0, show_default=True, help="Length of each live run.")
@json_option
@command
def fidelity(names: tuple[str, ...], policy: str, seconds: float, as_json: bool) -> None:
    """Goodput live and simulated, and both on the same arrivals at 50, 80 and 95 % of it.

    Settings, on 4 emulated GPUs: resnet50-25ms, inception-70ms, resnet50-100ms, 8-models-100ms.
    """
    from symphony_dask.errors import BadInput
    from workloads.bench.fidelity import SETTINGS, bench_fidelity

    known = {setting.name: setting for setting in SETTINGS}
    for name in names:
        if name not in known:
            raise BadInput(f"setting {name!r} is unknown: choose of {', '.join(known)}")
    chosen = [known[name] for name in names] or list(SETTINGS)
    result = bench_fidelity(chosen, policy=policy, seconds=seconds, on_progress=lambda text: click.echo(text, err=True))
    if as_json:
        print_json(result)
        return
    for row in result["rows"]:
        if "share" in row:
            click.echo(
                f"{row['setting']:16} at {row['share']:.0%}: live {row['live_attainment']:.2%} good, "
                f"{row['live_mean_batch']:.2f} a batch; simulated {row['simulated_attainment']:.2%}, "
                f"{row['simulated_mean_batch']:.2f}"
            )
        else:
            click.echo(
                f"{row['setting']:16} {row['label']:10} {row['goodput_hz']:10,.0f} req/s of {row['bound_hz']:,.0f}"
            )


@bench.command()
@click.option("--slo", default="25ms", show_default=True, help="Latency objective; raised where l(1) leaves no room.")
@click.option("--max-batch", default=64, show_default=True, help="Largest batch to measure and form.")
@click.option("--seconds", default=5.0, show_default=True, help="Length of each run of the search.")
@json_option
@command
def gpu(slo: str, max_batch: int, seconds: float, as_json: bool) -> None:
    """ResNet-50 profiled and served on this machine's GPU, or its CPU where there is none."""
    from symphony_dask.units import NS_PER_MS, parse_duration_ns
    from workloads.bench.gpu import bench_gpu

    result = bench_gpu(
        slo_ms=parse_duration_ns(slo, "--slo") / NS_PER_MS,
        seconds=seconds,
        max_batch=max_batch,
        on_progress=lambda text: click.echo(text, err=True),
    )
    if as_json:
        print_json(result)
        return
    click.echo(result["label"])
    click.echo(f"l(b), ms    {', '.join(f'{b}: {ms:.2f}' for b, ms in result['profile_ms'])}")
    click.echo(f"SLO         {result['slo_ms']:.1f} ms (asked: {result['slo_asked_ms']:.1f})")
    click.echo(f"goodput     {result['goodput_hz']:,.1f} req/s of {result['bound_hz']:,.1f}")
    click.echo(f"batches     {result['mean_batch'] or 0:.1f} requests; device busy {result['gpu_busy'] or 0:.0%}")
    click.echo(f"answers     in batches and alone differ by at most {result['largest_difference']:.1e} of the largest")


@bench.command()
@click.option(
    "--setting", "names", multiple=True, help="resnet50-25ms, inception-70ms, resnet50-100ms; by default all."
)
@click.option("--peer", "peers_", multiple=True, help="mosec, ray-serve, litserve; by default all.")
@click.option("--folder", default="~/.cache/symphony-dask/peers", show_default=True, help="For their environments.")
@click.option("--seconds", default=5.0, show_default=True, help="Length of each live run.")
@json_option
@command
def peers(names: tuple[str, ...], peers_: tuple[str, ...], folder: str, seconds: float, as_json: bool) -> None:
    """Live goodput of Ray Serve, Mosec and LitServe beside ours, on 4 emulated GPUs.

    Installs each into an environment of its own. Takes a minute or more for each of a peer's settings.
    """
    from symphony_dask.errors import BadInput
    from workloads.bench.fidelity import SETTINGS
    from workloads.bench.peers import PEERS, bench_peers

    known = {setting.name: setting for setting in SETTINGS[:3]}
    for name in names:
        if name not in known:
            raise BadInput(f"setting {name!r} is unknown: choose of {', '.join(known)}")
    result = bench_peers(
        [known[name] for name in names] or SETTINGS[:3],
        peers_ or tuple(PEERS),
        folder=folder,
        seconds=seconds,
        on_progress=lambda text: click.echo(text, err=True),
    )
    if as_json:
        print_json(result)
        return
    for row in result["rows"]:
        knobs = f"  batch {row['max_batch']}, wait {row['wait_ms']:g} ms" if "max_batch" in row else ""
        click.echo(f"{row['setting']:16} {row['system']:14} {row['goodput_hz']:10,.0f} req/s{knobs}")


@bench.command("gateway")
@click.option("--setting", "names", multiple=True, help="Of the peers' settings; by default all three.")
@click.option("--seconds", default=5.0, show_default=True, help="Length of each measurement.")
@click.option("--processes", default=1, show_default=True, help="Of the gateway.")
@click.option("--rounds", default=3, show_default=True, help="Closed loops at l(b)=0; the median counts.")
@click.option("--peers", "with_peers", is_flag=True, help="Ray Serve and Mosec in the same closed loops.")
@click.option("--null-only", is_flag=True, help="Leave the goodput settings out.")
@click.option(
    "--folder", default="~/.cache/symphony-dask/peers", show_default=True, help="For the peers' environments."
)
@json_option
@command
def gateway_(
    names: tuple[str, ...],
    seconds: float,
    processes: int,
    rounds: int,
    with_peers: bool,
    null_only: bool,
    folder: str,
    as_json: bool,
) -> None:
    """Requests a second over HTTP at l(b)=0, and goodput through the gateway, on 4 emulated GPUs."""
    from symphony_dask.errors import BadInput
    from workloads.bench.fidelity import SETTINGS
    from workloads.bench.gateway import bench_gateway

    known = {setting.name: setting for setting in SETTINGS[:3]}
    for name in names:
        if name not in known:
            raise BadInput(f"setting {name!r} is unknown: choose of {', '.join(known)}")
    settings = [] if null_only else [known[name] for name in names or known]
    found = bench_gateway(
        settings,
        seconds=seconds,
        processes=processes,
        rounds=rounds,
        peers=("ray-serve", "mosec") if with_peers else (),
        folder=folder,
        on_progress=lambda text: click.echo(text, err=True),
    )
    if as_json:
        print_json(found)
        return
    click.echo(f"l(b)=0       {found['rate_hz']:8,.0f} req/s  p50 {found['p50_ms']:.2f}  p99 {found['p99_ms']:.2f} ms")
    for row in found["open_loop"]:
        click.echo(f"  offered    {row['offered_hz']:8,.0f} req/s  p50 {row['p50_ms']:.2f}  p99 {row['p99_ms']:.2f} ms")
    for row in found["peers"]:
        click.echo(
            f"{row['system']:12} {row['rate_hz']:8,.0f} req/s  p50 {row['p50_ms']:.2f}  p99 {row['p99_ms']:.2f} ms"
        )
    for row in found["rows"]:
        click.echo(f"{row['setting']:16} {row['goodput_hz']:8,.0f} req/s good")


@bench.command()
@click.option("--pairs", default=8, show_default=True, help="Measurements with and without.")
@click.option("--seconds", default=3.0, show_default=True, help="Length of each.")
@click.option("--batch", default=8, show_default=True, help="Largest batch.")
@click.option(
    "--profile",
    "profile_text",
    default="0,0",
    show_default=True,
    help='l(b): "alpha,beta" in ms, or of the zoo.',
)
@json_option
@command
def recording(pairs: int, seconds: float, batch: int, profile_text: str, as_json: bool) -> None:
    """What recording a run costs in requests a second, in paired closed loops."""
    from workloads.bench.recording import bench_recording
    from workloads.traces.zoo import parse_profile

    profile = parse_profile(profile_text)
    found = bench_recording(
        pairs=pairs,
        seconds=seconds,
        batch=batch,
        alpha_ms=profile.alpha_ms,
        beta_ms=profile.beta_ms,
        on_progress=lambda text: click.echo(text, err=True),
    )
    if as_json:
        print_json(found)
        return
    click.echo(
        f"plain     {found['plain_hz']:10,.0f} req/s  {found['plain_cpu_us']:6.1f} us of scheduler CPU a request"
    )
    click.echo(f"recorded  {found['recorded_hz']:10,.0f} req/s  {found['recorded_cpu_us']:6.1f} us")
    click.echo(f"cost      {found['cost']:10.1%}")


@bench.command("graph")
@click.option("--tasks", default=1000, show_default=True, help="Tasks of each map.")
@click.option("--rounds", default=5, show_default=True, help="Maps of each kind; the best counts.")
@click.option("--batch", default=64, show_default=True, help="Largest batch.")
@json_option
@command
def graph_(tasks: int, rounds: int, batch: int, as_json: bool) -> None:
    """Tasks a second of client.map(model, xs), l(b)=0, beside client.map of a plain function."""
    from workloads.bench.graph import bench_graph

    found = bench_graph(tasks=tasks, rounds=rounds, batch=batch, on_progress=lambda text: click.echo(text, err=True))
    if as_json:
        print_json(found)
        return
    for row in found["rows"]:
        click.echo(f"{row['threads']} threads a worker: {row['ratio']:.2f} times plain tasks")
        for name in ("model", "function"):
            rate, scheduler, workers = (row[f"{name}_{key}"] for key in ("hz", "scheduler_cpu_us", "worker_cpu_us"))
            cpu = f"CPU for each: {scheduler:.0f} us scheduler, {workers:.0f} us workers"
            click.echo(f"  client.map({name}, ...)".ljust(28) + f"{rate:8,.0f} tasks/s  {cpu}")


@bench.command("pipeline")
@click.option("--requests", default=2000, show_default=True, help="Of each kind.")
@click.option("--payload", "payload_bytes", default=1024, show_default=True, help="Bytes of a sample.")
@click.option("--split", is_flag=True, help="Two emulated models in a row: the split of the SLO against halves.")
@click.option("--rate", "rates_hz", multiple=True, type=float, help="With --split, offered, req/s; may be repeated.")
@click.option("--seconds", default=10.0, show_default=True, help="With --split, length of each.")
@json_option
@command
def pipeline_(
    requests: int, payload_bytes: int, split: bool, rates_hz: tuple[float, ...], seconds: float, as_json: bool
) -> None:
    """Round trips and requests a second of a model, a chain of two and an ensemble of two, l(b)=0."""
    from workloads.bench.pipeline import bench_pipeline, bench_split

    def show(text: str) -> None:
        click.echo(text, err=True)

    if split:
        given: dict[str, Any] = {"rates_hz": rates_hz} if rates_hz else {}
        found = bench_split(seconds=seconds, on_progress=show, **given)
    else:
        found = bench_pipeline(requests=requests, payload_bytes=payload_bytes, on_progress=show)
    if as_json:
        print_json(found)
        return
    click.echo(found["label"])
    for row in found["rows"]:
        if split:
            budgets = " + ".join(f"{budget:.0f} ms" for budget in row["budgets_ms"])
            click.echo(f"{row['rate_hz']:6g} req/s  {row['case']:7} {budgets:14} {row['attainment']:8.2%} in time")
            continue
        rate = f"{row['rate_hz']:8,.0f} req/s {row['client_cpu_us']:6.0f} us of client CPU" if "rate_hz" in row else ""
        click.echo(f"{row['case']:20} {row['p50_ms']:6.2f} ms, p99 {row['p99_ms']:6.2f} ms {rate}")


@bench.command("placement")
@click.option("--models", default=30, show_default=True, help="How many models, of Zipf popularity.")
@click.option("--gpus", default=4, show_default=True, help="How many emulated GPUs.")
@click.option("--room", default=5, show_default=True, help="How many models fit a GPU.")
@click.option("--load", "load_ms", default=200.0, show_default=True, help="How long loading a model takes, ms.")
@click.option("--slo", "slo_ms", default=1000.0, show_default=True, help="Latency objective, ms.")
@click.option("--rate", "rate_hz", default=100.0, show_default=True, help="Offered, req/s.")
@click.option("--seconds", default=30.0, show_default=True, help="Length.")
@json_option
@command
def placement_(as_json: bool, **options: Any) -> None:
    """More models than fit the GPUs: attainment, and how often models were loaded."""
    from workloads.bench.placement import bench_placement

    found = bench_placement(**options, on_progress=lambda text: click.echo(text, err=True))
    if as_json:
        print_json(found)
        return
    click.echo(f"{found['requests']:,} requests to {found['models']} models, {found['attainment']:.2%} within the SLO")
    per_request, share = found["loads_per_request"], found["loading_share"]
    click.echo(f"{found['loads']} loads: {per_request:.3f} a request, {share:.1%} of the GPUs' time")


@bench.command("overload")
@click.option("--times", multiple=True, type=float, help="Offered load over capacity; by default 0.5 to 20.")
@click.option("--profile", "profile_text", default="5.09,18.368", show_default=True, help='l(b): "alpha,beta" in ms.')
@click.option("--slo", default="100ms", show_default=True, help="Latency objective.")
@click.option("--gpus", default=4, show_default=True, help="How many emulated GPUs.")
@click.option("--seconds", default=6.0, show_default=True, help="Length of each load.")
@click.option("--png", type=click.Path(dir_okay=False), help='Goodput against offered load; needs the extra "plot".')
@json_option
@command
def overload_(
    times: tuple[float, ...], profile_text: str, slo: str, png: str | None, as_json: bool, **options: Any
) -> None:
    """Far more than the GPUs can serve: goodput, refusals, memory, an interactive model beside a flood, recovery."""
    from symphony_dask.units import parse_duration_ns
    from workloads.bench import overload

    profile = _profile(profile_text)
    found = overload.bench_overload(
        times=times or overload.TIMES, alpha_ms=profile.alpha_ms, beta_ms=profile.beta_ms,
        slo_ns=parse_duration_ns(slo, "slo"), on_progress=lambda text: click.echo(text, err=True), **options,
    )  # fmt: skip
    if png is not None:
        overload.draw(found, png)
    if as_json:
        print_json(found)
        return
    click.echo(f"peak {found['peak_hz']:,.0f} req/s, bound {found['capacity_hz']:,.0f}; {found['label']}")
    for row in found["rows"]:
        refused = f"refused in {row['rejection_p99_ms']:.1f} ms (p99)" if row["rejected"] else "none refused"
        share = f"{row['share_of_peak']:.1%} of the peak"
        memory = f"scheduler {row['scheduler_mib']:.0f} MiB"
        click.echo(f"  {row['times']:5g} times: {row['goodput_hz']:8,.0f} req/s in time, {share}, {refused}, {memory}")
    fairness, recovery = found["fairness"], found["recovery"]
    click.echo(f"an interactive model beside {fairness['flood_times']:g} times: {fairness['attainment']:.2%} in time")
    back = recovery["back_ms"]
    click.echo("after the flood: " + ("never in time again" if back is None else f"in time again within {back:.0f} ms"))


@click.command("soak")
@click.option("--hours", required=True, type=float, help="How long.")
@click.option("--seed", default=0, show_default=True, help="Of the faults and the load.")
@click.option(
    "--folder", type=click.Path(file_okay=False), help="For report and samples; by default symphony-soak-TIME."
)
@click.option("--every", "every_s", default=60.0, show_default=True, help="Seconds between samples.")
@json_option
@command
def soak_(hours: float, seed: int, folder: str | None, every_s: float, as_json: bool) -> None:
    """Mixed models, bursts, roll-outs, scaling and faults at random; what grows meanwhile, an hour.

    The report, soak.json in the folder, is written anew with every sample.
    """
    from workloads.live.soak import soak

    say = lambda text: click.echo(text, err=True)  # noqa: E731
    found = soak(hours=hours, seed=seed, folder=folder, every_s=every_s, on_progress=say)
    if as_json:
        print_json(found)
        return
    click.echo(
        f"{found['hours']:.2f} h, {found['requests']:,} requests, {found['faults']} faults; in {found['folder']}"
    )
    for row in found["slopes"]:
        click.echo(f"  {row['process']:10} {row['what']:22} {row['last']:10.1f}, {row['per_hour']:+8.2f} an hour")


popularity_option = click.option(
    "--popularity", type=click.Choice(["equal", "zipf"]), default="equal", show_default=True, help="Of the models."
)


@bench.command("engine")
@click.option("--models", default=1, show_default=True, help="How many models alike, equally popular.")
@click.option("--gpus", default=8, show_default=True, help="How many emulated GPUs.")
@click.option("--rate", "rate_hz", type=float, help="Offered, req/s; by default 90 % of the goodput bound.")
@click.option("--seconds", default=5.0, show_default=True, help="Length, by the clock or virtual.")
@click.option(
    "--threads", default=1, show_default=True, help="1: the whole engine; N: N-1 model threads, 1 rank thread."
)
@click.option("--virtual", is_flag=True, help="Jump from event to event, as fast as one core can.")
@click.option("--policy", default="deferred", show_default=True, help="A policy of the engine.")
@click.option(
    "--profile", "profile_text", help='l(b), "alpha,beta" in ms; by default ResNet-50, alpha as the rate needs.'
)
@click.option("--slo", default="25ms", show_default=True, help="Latency objective.")
@click.option("--shape", default=1.0, show_default=True, help="Of the gamma distributed gaps; below 1 they burst.")
@click.option("--search", is_flag=True, help="Find the highest rate, from --rate on, with less than 0.1 % late.")
@click.option("--growth", is_flag=True, help="Virtual time, from 1 model on 8 GPUs to 1,000 on 5,000.")
@json_option
@command
def engine_(profile_text: str | None, slo: str, search: bool, growth: bool, as_json: bool, **options: Any) -> None:
    """Requests a second that the scheduler alone can handle, and how late its decisions are."""
    from symphony_dask.errors import BadInput
    from symphony_dask.units import parse_duration_ns
    from workloads.bench import engine

    profile = None if profile_text is None else _profile(profile_text)
    setting = engine.Setting(profile=profile, slo_ns=parse_duration_ns(slo, "slo"), **options)
    if search and (growth or setting.virtual):
        raise BadInput("--search is for real time: leave out --virtual and --growth")

    def on_progress(text: str) -> None:
        click.echo(text, err=True)

    if growth:
        found = engine.growth(setting, on_progress)
    elif search:
        found = engine.search(setting, on_progress)
    else:
        found = engine.bench_engine(setting)
    if as_json:
        print_json(found)
        return
    click.echo(found["label"])
    for row in found.get("rows", [found]):
        lateness = " / ".join("-" if us is None else f"{us:,.0f}" for us in row["lateness_us"].values())
        click.echo(
            f"{row['models']:,} models, {row['gpus']:,} GPUs: {row['rate_hz']:,.0f} req/s, "
            f"{row['late_fraction']:.3%} late, decisions late by {lateness} us (p50 / p99 / p99.9), "
            f"{row['cpu_us_per_request']:.2f} us CPU a request, mean batch {row['mean_batch']:.1f}, "
            f"{row['gpus_used']:,} GPUs used, {row['busy_gpus']:,.1f} busy"
        )


@click.command()
@profiles_option(required=True)
@click.option("--slo", required=True, help="Latency objective, such as 25ms.")
@click.option("--models", default=1, show_default=True, help="How many models alike.")
@gpus_option
@popularity_option
@json_option
@command
def bound(
    profile_texts: tuple[str, ...], slo: str, models: int, gpus_text: str, popularity: str, as_json: bool
) -> None:
    """The highest goodput that any scheduler could reach, req/s."""
    from symphony_dask.errors import BadInput
    from symphony_dask.units import parse_duration_ns
    from workloads.compare.bound import BoundModel, goodput_bound
    from workloads.traces.zoo import POPULARITIES

    gpus, profile, by_class = _fleet(gpus_text, profile_texts)
    _require_profiles(gpus, profile, by_class)
    if models < 1 or gpus == 0:
        raise BadInput(f"models={models}, gpus={gpus_text}: both must be at least 1")
    default = profile or next(iter(by_class.values()))
    slo_ns = parse_duration_ns(slo, "slo")
    mix = [BoundModel(default, slo_ns, share, by_class) for share in POPULARITIES[popularity](models)]
    result = goodput_bound(mix, gpus)
    if as_json:
        print_json({"bound_hz": result.bound_hz, "batch": result.batch_sizes[0]})
    else:
        least = "" if popularity == "equal" else f" to {result.batch_sizes[-1]:.1f}"
        click.echo(f"{result.bound_hz:,.0f} req/s, in batches of {result.batch_sizes[0]:.1f}{least}")


def _fleet(gpus_text: str, profile_texts: Sequence[str]) -> tuple[Any, Any, dict[str, Any]]:
    """GPUs, the default profile (None where none is given) and profiles by class, as --gpus and --profile give them."""
    from symphony_dask.errors import BadInput
    from workloads.simulation.fleet import groups, parse_gpus
    from workloads.traces.zoo import parse_profiles

    gpus = parse_gpus(gpus_text)
    profile, by_class = parse_profiles(profile_texts)
    classes = [group.gpu_class for group in groups(gpus)]
    if unknown := [name for name in by_class if name not in classes]:
        raise BadInput(f"--profile {unknown[0]}=...: --gpus {gpus_text} has no GPU class {unknown[0]!r}")
    return gpus, profile, by_class


def _require_profiles(gpus: Any, profile: Any, named: Collection[str]) -> None:
    """Raise ``BadInput`` for a GPU class that nothing gives a profile."""
    from symphony_dask.errors import BadInput
    from workloads.simulation.fleet import groups

    missing = [group.gpu_class for group in groups(gpus) if group.gpu_class not in named]
    if missing and profile is None:
        raise BadInput(f"no profile for GPU class {missing[0]!r}: give --profile {missing[0]}=ALPHA,BETA")


def _profile(text: str) -> Any:
    """The latency profile that ``text`` names or writes out; raises ``BadInput``."""
    from workloads.traces.zoo import parse_profile

    return parse_profile(text)


@click.command("goodput")
@click.option("--profile", "profile_text", required=True, help='l(b): "alpha,beta" in ms, or a name of the zoo.')
@click.option("--slo", required=True, help="Latency objective, such as 25ms.")
@click.option("--models", default=1, show_default=True, help="How many models alike.")
@click.option("--gpus", required=True, type=int, help="How many GPUs.")
@click.option("--policy", default="adaptive", show_default=True, help="A policy of the engine, or a baseline.")
@click.option("--shape", default=1.0, show_default=True, help="Of the gamma distributed gaps; below 1 they burst.")
@popularity_option
@click.option("--seconds", default=20.0, show_default=True, help="Length of each simulation.")
@click.option("--seeds", default=3, show_default=True, help="How many searches the figure is the mean of.")
@json_option
@command
def goodput_(
    profile_text: str,
    slo: str,
    models: int,
    gpus: int,
    policy: str,
    shape: float,
    popularity: str,
    seconds: float,
    seeds: int,
    as_json: bool,
) -> None:
    """The highest offered rate at which 99 % of requests finish within their SLO, by simulation, req/s."""
    from dataclasses import asdict

    from symphony_dask.units import parse_duration_ns
    from workloads.compare.goodput import goodput
    from workloads.simulation.result import SimModel
    from workloads.traces.zoo import POPULARITIES

    profile, slo_ns = _profile(profile_text), parse_duration_ns(slo, "slo")
    mix = [SimModel(f"model-{m}", profile, slo_ns) for m in range(models)]
    shares = POPULARITIES[popularity](models)
    found = goodput(mix, gpus, policy=policy, shape=shape, seconds=seconds, seeds=seeds, shares=shares)
    if as_json:
        print_json(asdict(found))
        return
    click.echo(
        f"{found.goodput_hz:,.0f} req/s ({found.low_hz:,.0f} to {found.high_hz:,.0f}) simulated, "
        f"bound {found.bound_hz:,.0f}, mean batch {found.mean_batch:.1f}"
    )


@click.command("simulate")
@click.argument("path", metavar="TRACE")
@gpus_option
@click.option("--policy", default="adaptive", show_default=True, help="A policy of the engine, or a baseline.")
@click.option("--slo", help="Latency objective of every request; by default the trace's own, else 50ms.")
@profiles_option(required=False)
@click.option("--noise", default=0.0, help="Standard deviation of execution times, as a part of l(b).")
@click.option("--seed", default=0, help="Draws the noise.")
@click.option("--folder", type=click.Path(), help="Where to write the tables of the simulated run.")
@json_option
@command
def simulate_(
    path: str,
    gpus_text: str,
    policy: str,
    slo: str | None,
    profile_texts: tuple[str, ...],
    noise: float,
    seed: int,
    folder: str | None,
    as_json: bool,
) -> None:
    """Serve TRACE's requests on simulated GPUs, under a virtual clock.

    With --folder, "digest" is a hash of all rows of all tables: the same wherever the same simulation runs.
    """
    import time

    from symphony_dask.errors import BadInput
    from symphony_dask.units import parse_duration_ns
    from workloads.compare.policies import compile_policies, scheduler
    from workloads.simulation.record import record
    from workloads.simulation.simulate import SimulatedRun
    from workloads.simulation.workload import read_workload
    from workloads.traces.digest import digest, file_hashes

    gpus, profile, by_class = _fleet(gpus_text, profile_texts)
    note_partial(path)
    began = time.perf_counter()
    work = read_workload(path, profile, None if slo is None else parse_duration_ns(slo, "slo"), by_class)
    read_s = time.perf_counter() - began
    if not isinstance(gpus, int):
        _require_profiles(gpus, profile, set.intersection(*(set(model.profiles) for model in work.models)))
    compile_policies([policy])  # not simulation, so not timed
    began = time.perf_counter()
    result = scheduler(policy, slos_ns=work.slos_ns, noise=noise, seed=seed)(
        work.models, gpus, work.arrivals_ns, work.choices
    )
    found = {**result.to_dict(), "simulated_hz": len(work.arrivals_ns) / (time.perf_counter() - began)}
    found["read_s"] = read_s
    if folder is not None:
        if not isinstance(result, SimulatedRun):
            raise BadInput(f"policy {policy!r} is a baseline, which keeps no tables: leave --folder out")
        del work  # a long trace leaves little room for more
        record(result, folder, trace=path)
        found |= {"run": folder, "digest": digest(folder), "sha256": file_hashes(folder)}
    if as_json:
        print_json(found)
        return
    for key, value in found.items():
        click.echo(f"{key:12} {value:,.3f}" if isinstance(value, float) else f"{key:12} {value}")


@click.command("replay")
@click.argument("path", metavar="TRACE", type=click.Path(exists=True))
@scheduler_option(required=False, purpose="for a live replay")
@click.option("--simulate", is_flag=True, help="Not on a cluster, but on simulated GPUs under a virtual clock.")
@click.option("--model", "model_text", multiple=True, metavar="NAME=A,B@SLO", help="An emulated model to deploy.")
@click.option("--speed", default=1.0, show_default=True, help="How much faster than recorded.")
@click.option("--slo", help="Of every model, in place of its own.")
@click.option("--policy", help="A policy of the engine; by default the scheduler's, simulated that of the run.")
@click.option("--gpus", type=int, help="Simulated: how many; by default as many as the run had.")
@click.option("--payload", help="Live: bytes of each request, or 'trace': as recorded (of each model the median).")
@click.option("--folder", type=click.Path(), help="Where the run is recorded; by default symphony-runs/replay-TIME.")
@json_option
@command
def replay_(path: str, scheduler: str | None, simulate: bool, as_json: bool, **options: Any) -> None:
    """Submit TRACE's requests to a live cluster at their recorded times, or to simulated GPUs.

    The models are those of the run, as far as TRACE is one, with emulated GPUs that take their recorded l(b). With
    --model (and for a trace without models: one like ResNet-50) these serve the trace's models in turn.
    """
    from symphony_dask.errors import BadInput
    from workloads.live.replay_trace import replay_live, replay_simulated

    if simulate and _given("scheduler"):
        raise BadInput("give either --scheduler ADDRESS or --simulate, not both")
    if not simulate and scheduler is None:
        raise BadInput("give --scheduler ADDRESS (or set DASK_SCHEDULER_ADDRESS), or --simulate")
    note_partial(path)
    if simulate or scheduler is None:
        result = replay_simulated(path, **options)
    else:
        result = replay_live(path, scheduler, **options)
    if as_json:
        print_json(result)
        return
    for key, value in result.items():
        click.echo(f"{key:17} {value:,.3f}" if isinstance(value, float) else f"{key:17} {value}")


def _given(option: str) -> bool:
    """Whether the option was written, and is not a default."""
    return click.get_current_context().get_parameter_source(option) is ParameterSource.COMMANDLINE


@click.command("verify")
@click.argument("run")
@json_option
@command
def verify_(run: str, as_json: bool) -> None:
    """Lead the engine once more through the events of a recorded RUN; tell the first decision that differs.

    There must be none. Exits with 1 if there is.
    """
    from workloads.analysis.verify import verify

    note_partial(run)
    found = verify(run)
    if as_json:
        print_json(found.to_dict())
    elif found.first is None:
        click.echo(f"{found.decisions:,} decisions at {found.events:,} events, all as recorded")
    else:
        first = found.first
        click.echo(f"event {first.event} at {first.time_ns / 1e6:.3f} ms differs, after {found.decisions:,} decisions")
        for name, decided in (("recorded", first.recorded), ("replayed", first.replayed)):
            for batch, model, gpu, slots in decided.batches:
                click.echo(f"  {name}: batch {batch} of model {model} on GPU {gpu}, requests in slots {slots}")
            if decided.drops:
                click.echo(f"  {name}: drops slots {decided.drops}")
    if found.differing:
        raise SystemExit(1)


COMMANDS = [demo, bench, bound, goodput_, compare, simulate_, trace, replay_, verify_, soak_, *REPORT_COMMANDS]
