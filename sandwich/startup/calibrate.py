"""Measures all that the cost model wants to know of this machine: `sandwich probe --measure`.

Takes seconds. Every figure is measured with compiled code: probes of memory, arithmetic, barriers
and cache lines, and the programs of a small model whose weights stay in the caches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Final

from codegen.layout.model import ModelLayout
from codegen.spec import Phase
from platforms.machine import Machine
from sandwich.config import QUANTIZATIONS, EngineConfig
from sandwich.models.presets import preset
from sandwich.startup.quantization import weight_formats
from sandwich.startup.step_bench import MAX_SEQS, MAX_TOKENS, StepBench, StepTimer
from schedules.calibration import Calibration, ProgramRates
from schedules.cost import StepCase
from schedules.kernel_fit import TimedStep, program_rates
from schedules.records import current_generator
from schedules.tiles.default_plans import default_plans, panel_width
from schedules.topology_meters import (
    Track,
    barrier_times,
    line_times,
    measured_sets,
    peak_rates,
    read_rates,
)
from schedules.topotree import TopoTree

DTYPES: Final = ("bfloat16", "float32")
WEIGHTS: Final = (("float32", "none"), *(("bfloat16", name) for name in QUANTIZATIONS))
NUM_SAMPLES: Final = 5
CONTEXTS: Final = (64, 512)  # keys of each sequence in decode
# One layer of a shape whose four query heads to a KV head and 64 values to a head are common; with
# 16 MB of bf16 weights it stays in most last level caches.
PROBE_MODEL: Final = replace(
    preset("smollm-135m"),
    name="probe",
    num_layers=1,
    hidden_size=768,
    num_heads=12,
    num_kv_heads=3,
    intermediate_size=2048,
    vocab_size=2048,
)


def calibrate(machine: Machine, cache_dir: Path, track: Track) -> Calibration:
    """Measure the usable cores. Compiled programs are kept in `cache_dir`."""
    tree = TopoTree.of(machine)
    sets = measured_sets(tree)
    return Calibration(
        fingerprint=machine.fingerprint,
        isa=machine.isa,
        generator=current_generator(),
        cpus=tuple(sorted(tree.cpus)),
        reads=tuple(read_rates(machine, sets, track)),
        barriers=tuple(barrier_times(machine, sets, track)),
        peaks=tuple(peak_rates(machine, sets, DTYPES, track)),
        lines=tuple(line_times(machine, tree.cpus, track)),
        programs=tuple(_all_programs(machine, tree.cpus[0], cache_dir, track)),
    )


def probe_cases(phase: Phase) -> list[StepCase]:
    """Steps of every number of rows that plans tell apart, and of more than one context."""
    if phase is Phase.PREFILL:
        return [StepCase(phase, n) for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, MAX_TOKENS)]
    batches = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, MAX_SEQS)
    return [StepCase(phase, batch, context) for context in CONTEXTS for batch in batches]


def _all_programs(
    machine: Machine, cpu: int, cache_dir: Path, track: Track
) -> Iterator[ProgramRates]:
    isa = machine.isa_row
    shape = PROBE_MODEL.shape(PROBE_MODEL.max_position_embeddings)
    for dtype, quantization in WEIGHTS:
        formats = weight_formats(EngineConfig(quantization=quantization), dtype)
        both = formats.layers, formats.lm_head
        plans = default_plans(isa, (cpu,), shape, *both)
        layout = ModelLayout.build(shape, dtype, isa.lanes, panel_width(isa), *both)
        bench = StepBench(machine, PROBE_MODEL, layout, dtype, MAX_SEQS * max(CONTEXTS))
        with closing(bench), bench.on(plans, cache_dir, has_timers=True) as timer:
            for phase in Phase:
                cases = track(probe_cases(phase), f"{formats.layers.name} {phase.value}")
                steps = [_timed(timer, case) for case in cases]
                yield program_rates(layout, dtype, plans.prefill.query_tile, steps)


def _timed(timer: StepTimer, case: StepCase) -> TimedStep:
    """The shortest of several times of every operator, and of the rest."""
    samples: Sequence[tuple[dict[str, int], float]] = [
        timer.operator_ns(case) for _ in range(NUM_SAMPLES)
    ]
    shortest = {name: min(ns[name] for ns, _ in samples) for name in samples[0][0]}
    rest = min(total - sum(ns.values()) for ns, total in samples)
    return TimedStep(case, shortest, sum(shortest.values()) + rest)
