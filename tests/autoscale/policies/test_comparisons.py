"""The rules of others, by the figures of their sources."""

from __future__ import annotations

from dataclasses import replace

from autoscale.policies.registry import POLICIES, Fleet, Memory, Settings
from tests.helpers.aws.policies import at, gpus, model


def decide(name, settings, signals, fleet, memory=None):
    return POLICIES[name](settings, memory or Memory(), signals, fleet)


# Dask: ceil(occupancy / target_duration), no more than there are tasks


def test_dask_asks_for_the_time_of_all_tasks_over_the_target_duration():
    # 700 tasks of 10 ms are 7 s; over 2 s each that is 3.5 workers.
    signals = at(0.0, model(1000.0, ongoing=700.0))
    assert decide("dask_adaptive", Settings(target_duration_s=2.0), signals, Fleet(1))[1].gpus == 4


def test_dask_asks_for_no_more_workers_than_tasks():
    signals = at(0.0, model(1.0, 100.0, ongoing=3.0))
    assert decide("dask_adaptive", Settings(target_duration_s=5.0), signals, Fleet(1))[1].gpus == 3


def test_dask_gives_back_only_workers_that_have_nothing_to_do():
    # Of 6, the last is always idle and the one before three times in a row with probability 0.5 ** 3.
    signals = at(0.0, model(10.0, ongoing=1.0), gpus=gpus(1.0, 1.0, 1.0, 1.0, 0.5, 0.0))
    assert decide("dask_adaptive", Settings(), signals, Fleet(6))[1].gpus == 5


def test_dask_starts_a_worker_for_tasks_that_no_worker_can_run():
    signals = at(0.0, model(1.0, queued=1))
    assert decide("dask_adaptive", Settings(), signals, Fleet(0))[1].gpus == 1


# Ray: replicas * (ongoing a replica / target), each way after a delay


def follow_ray(settings, course, fleet):
    memory, found = Memory(), []
    for i, ongoing in enumerate(course):
        memory, target = decide(
            "ray_ongoing", settings, at(10.0 * i, model(9.0, ongoing=ongoing)), Fleet(fleet), memory
        )
        fleet = target.gpus
        found.append(fleet)
    return found


def test_ray_scales_out_when_it_has_wanted_more_for_the_delay():
    # 30 ongoing at 6 a replica are 5 replicas.
    settings = Settings(target_ongoing=6.0, upscale_delay_s=30.0)
    assert follow_ray(settings, [12.0] + [30.0] * 5, 2) == [2, 2, 2, 2, 5, 5]


def test_ray_forgets_that_it_wanted_more_when_it_does_no_longer():
    settings = Settings(target_ongoing=6.0, upscale_delay_s=30.0)
    assert follow_ray(settings, [30.0, 30.0, 12.0, 30.0, 30.0, 30.0], 2) == [2] * 6


def test_ray_scales_in_after_its_longer_delay():
    settings = Settings(target_ongoing=6.0, downscale_delay_s=60.0)
    assert follow_ray(settings, [6.0] * 8, 4) == [4] * 6 + [1] * 2


def test_ray_starts_one_replica_from_none():
    assert decide("ray_ongoing", Settings(), at(0.0, model(1.0)), Fleet(0))[1].gpus == 1


# Kubernetes: ceil(pods * utilization / target), tolerance 0.1, the most of the stabilization window on the way down

HALF = Settings(target_utilization=0.5, stabilization_s=60.0)


def test_utilization_tracks_its_target():
    # 4 GPUs at 75 % where 50 % is wanted: 6.
    signals = at(0.0, model(1.0), gpus=gpus(0.75, 0.75, 0.75, 0.75))
    assert decide("gpu_utilization", HALF, signals, Fleet(4))[1].gpus == 6


def test_utilization_within_its_tolerance_changes_nothing():
    signals = at(0.0, model(1.0), gpus=gpus(0.54, 0.54, 0.54, 0.54))
    assert decide("gpu_utilization", HALF, signals, Fleet(4))[1].gpus == 4


def test_gpus_that_boot_count_as_idle_when_more_are_wanted():
    # 3 GPU's worth of work on 4 GPUs; with the 2 that boot that is the target exactly.
    signals = at(0.0, model(1.0), gpus=gpus(0.75, 0.75, 0.75, 0.75))
    assert decide("gpu_utilization", HALF, signals, Fleet(4, booting=2))[1].gpus == 6


def test_utilization_shrinks_to_the_most_it_wanted_within_its_window():
    memory, found = Memory(), []
    for i, busy in enumerate([0.5, 0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]):
        signals = at(10.0 * i, model(1.0), gpus=gpus(*[busy] * 10))
        memory, target = decide("gpu_utilization", HALF, signals, Fleet(10), memory)
        found.append(target.gpus)
    # 10 * 0.5 / 0.5 = 10 until 60 s later, 8 until 60 s after that was wanted, then 2.
    assert found == [10] * 6 + [8, 2, 2]


def test_a_first_gpu_that_was_idle_while_it_joined_is_not_given_back_at_once():
    memory = Memory()
    memory, target = decide("gpu_utilization", HALF, at(0.0, model(100.0)), Fleet(0), memory)
    assert target.gpus == 1
    _, target = decide("gpu_utilization", HALF, at(50.0, model(100.0), gpus=gpus(0.0)), Fleet(1), memory)
    assert target.gpus == 1


def test_a_fixed_fleet_is_fixed():
    assert decide("fixed_peak", Settings(fixed_gpus=9), at(0.0), Fleet(2))[1].gpus == 9
    assert decide("fixed_peak", replace(Settings(), fixed_gpus=99, maximum=50), at(0.0), Fleet(2))[1].gpus == 50
