"""What is still to be learnt will take: time, memory and disk, from a few timed steps on this
machine.

Each kind of training (what is learnt, batch size, length, ...) is timed once: the base is loaded, a
warm-up step and TIMED more steps are made on some of the data, and the model is thrown away. How
many steps and evaluations a training takes follows from the size of its data. Steps of a kind that
the store has seen before go by what those took.
"""

import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import mean, median
from time import monotonic
from typing import Any

import torch
from torch import nn

from deftx.config import (
    FitConfig,
    LanguageTrainingConfig,
    LanguageVectorConfig,
    TaskVectorConfig,
    TrainingConfig,
    VectorConfig,
)
from deftx.core.parameters import parameter_groups
from deftx.core.reselection import RESELECTIONS
from deftx.core.select import parse_k
from deftx.data.examples import Examples, joined
from deftx.experiments.plan import Step
from deftx.experiments.recipe import TASK
from deftx.experiments.store import Store
from deftx.models.limits import longest_input
from deftx.models.tokenizers import load_tokenizer
from deftx.training.loop import total_steps
from deftx.training.precision import autocast, bf16_pays
from deftx.training.preparation import (
    PreparedTraining,
    prepare_language,
    prepare_task,
    takes_halves,
    takes_phase1,
)

TIMED = 3  # steps, after one to warm up
PATIENCE = 60.0  # seconds, after which one timed step has to do
SAMPLE_LINES = 500  # of a text, to time and to count tokens with
SAMPLE_EXAMPLES = 200  # of labelled data, to time with
FLOAT = 4  # bytes of a number
ENTRY = 4.2  # bytes of an entry in a vector's file, at most
STATE = 4  # numbers that a training which resumes keeps of each that it moves
TRAINED = ("delta", "vector", "adapter")  # kinds of steps that train


@dataclass(frozen=True)
class Estimate:
    """What some work will take, about.

    seconds     of all its steps, one after the other
    memory      the most bytes that a training holds, on the GPU where there is one
    disk        bytes that stay at the end
    disk_state  bytes besides, while a training is under way, from which it resumes if it is stopped
    """

    seconds: float
    memory: int
    disk: int
    disk_state: int


@dataclass(frozen=True)
class Speed:
    """How one kind of training goes on this machine.

    step        seconds of an optimiser step
    example     seconds of evaluating one example, or one block of text
    parameters  numbers that the model has; moved: those that phase 1 moves
    batch       bytes that a batch takes beside weights and optimiser, and on a processor the
                program itself
    length      tokens of a block of text
    """

    step: float
    example: float
    parameters: int
    moved: int
    batch: int
    length: int

    @property
    def memory(self) -> int:
        """The most bytes that a fit holds."""
        return FLOAT * phase1_numbers(self.parameters, self.moved) + self.batch

    def seconds(self, examples: int, evaluated: int, training: TrainingConfig) -> float:
        """How long a training on so many examples takes, which is evaluated on so many others."""
        steps = total_steps(examples, training)
        evaluations = 1 + ceil(steps / training.evaluate_every)  # the start is evaluated too
        return steps * self.step + evaluations * evaluated * self.example


def phase1_numbers(parameters: int, moved: int) -> int:
    """The numbers that phase 1 holds at most, beside a batch: the weights, and of each that it
    moves its start twice, its best value so far, a gradient and two moments of AdamW."""
    return parameters + 6 * moved


def chosen_by_weight_numbers(parameters: int, moved: int, k: int) -> int:
    """The numbers that a fit holds at most whose entries are chosen by the weights, beside a batch:
    the weights; what they are compared by, or dense gradients; and of each of its k entries the
    value, start, gradient, moments, best value and index."""
    return parameters + moved + 20 * k


def reselected_numbers(parameters: int, moved: int, k: int) -> int:
    """The same where entries are chosen while they are trained: the weights, a dense gradient, of
    the largest tensor and so of no more than can move, and 50 for each entry while some are
    replaced (docs/log.md)."""
    return parameters + moved + 50 * k


def memory_of(settings: FitConfig, speed: Speed) -> int:
    """The most bytes that a fit or a baseline holds; a baseline is taken to hold what phase 1
    does."""
    if not isinstance(settings, VectorConfig) or takes_phase1(settings):
        return speed.memory
    k = parse_k(settings.k, speed.moved)
    if settings.method in RESELECTIONS:
        numbers = reselected_numbers(speed.parameters, speed.moved, k)
    else:
        numbers = chosen_by_weight_numbers(speed.parameters, speed.moved, k)
    return FLOAT * numbers + speed.batch


def estimate_language(base: str, lines: Sequence[str], settings: LanguageVectorConfig) -> Estimate:
    """What `deftx.fit_language` will take."""
    speed = language_speed(base, lines, settings)
    sizes = blocks_of(load_tokenizer(base), lines, settings.training, speed.length)
    return _of_fit(speed, sizes, settings)


def estimate_task(
    base: str, train: Examples, valid: Examples, settings: TaskVectorConfig
) -> Estimate:
    """What `deftx.fit_task` will take."""
    return _of_fit(task_speed(base, train, settings), (len(train), len(valid)), settings)


def _of_fit(speed: Speed, sizes: tuple[int, int], settings: VectorConfig) -> Estimate:
    """All phases of a fit, of which nothing but the vector stays."""
    phases = 0
    if takes_phase1(settings):
        phases += 1
    if settings.phase2:
        phases += 1
    if takes_halves(settings):  # two trainings of half the steps
        phases += 1
    seconds = phases * speed.seconds(*sizes, settings.training)
    phase1 = FLOAT * speed.moved
    state = phase1 + STATE * phase1
    if not takes_phase1(settings):
        state = FLOAT * 12 * parse_k(settings.k, speed.moved)
    return Estimate(seconds, memory_of(settings, speed), _vector_bytes(settings, speed), state)


def estimate_steps(steps: Sequence[Step], store: Store) -> Estimate:
    """What steps of a run will take; their data are in the store."""
    rates, speeds = seconds_by_cost(store), dict[tuple[Any, ...], Speed]()
    seconds, disk, memory, state = 0.0, 0.0, 0, 0
    for step in steps:
        rate = rates.get(alike(step.kind, step.spec))
        if step.kind not in TRAINED:
            seconds += step.cost * rate if rate is not None else _scoring_seconds(step, speeds)
            continue
        assert step.settings is not None
        key = _alike_in_speed(step, step.settings)
        if key not in speeds:
            speeds[key] = _speed_of(step, step.settings, store)
        speed = speeds[key]
        seconds += (
            step.cost * rate
            if rate is not None
            else _training_seconds(step, step.settings, speed, store)
        )
        memory = max(memory, memory_of(step.settings, speed))
        state = max(state, STATE * FLOAT * speed.moved)
        disk += FLOAT * speed.moved if step.kind == "delta" else _vector_bytes(step.settings, speed)
    return Estimate(seconds, memory, int(disk), state)


def seconds_left(steps: Sequence[Step], store: Store) -> float | None:
    """About how many seconds steps take, going by what such steps took before; None where there
    were none."""
    rates = seconds_by_cost(store)
    total = 0.0
    for step in steps:
        rate = rates.get(alike(step.kind, step.spec))
        if rate is None:
            return None
        total += step.cost * rate
    return total


def seconds_by_cost(store: Store) -> dict[tuple[Any, ...], float]:
    """The median seconds for each unit of cost of the finished steps, by what makes steps
    `alike`."""
    seen: dict[tuple[Any, ...], list[float]] = {}
    for record in store.records():
        if record.get("seconds"):
            rate = record["seconds"] / record["cost"]
            seen.setdefault(alike(record["kind"], record), []).append(rate)
    return {key: median(values) for key, values in seen.items()}


def alike(kind: str, about: Mapping[str, Any]) -> tuple[Any, ...]:
    """What steps have in common whose time goes with their cost."""
    training = (about.get("settings") or {}).get("training", {})
    return (
        kind,
        about.get("what"),
        about.get("base"),
        training.get("batch_size"),
        training.get("length"),
    )


def _alike_in_speed(step: Step, settings: FitConfig) -> tuple[Any, ...]:
    """What steps have in common whose trainings are equally fast."""
    training = settings.training
    head, task = getattr(training, "head", None), getattr(settings, "task", None)
    shapes = training.batch_size, training.accumulate, training.length, training.precision
    return step.spec.get("what"), step.base, *shapes, head, task


def _training_seconds(step: Step, settings: FitConfig, speed: Speed, store: Store) -> float:
    """How long the training of a step takes; that on one half of the data takes half of the
    steps."""
    if step.kind == "vector" and not getattr(settings, "phase2", True):
        return 0.0
    if step.spec.get("what") == TASK:
        train, valid = _labelled(step, store)
        sizes = len(train), len(valid)
    else:
        lines, training = store.texts(step.spec["text"]), settings.training
        assert isinstance(training, LanguageTrainingConfig)
        sizes = blocks_of(load_tokenizer(step.base), lines, training, speed.length)
    seconds = speed.seconds(*sizes, settings.training)
    return seconds / 2 if step.spec.get("half") else seconds


def _scoring_seconds(step: Step, speeds: Mapping[tuple[Any, ...], Speed]) -> float:
    """How long it takes to score; nothing to speak of where no task is learnt beside it."""
    of_tasks = [speed.example for (what, *_), speed in speeds.items() if what == TASK]
    return step.cost * mean(of_tasks) if of_tasks and step.kind == "score" else 0.0


def _speed_of(step: Step, settings: FitConfig, store: Store) -> Speed:
    """The speed of a step's training; a baseline's is taken to be that of a vector's, which is no
    faster."""
    shared = {"seed": settings.seed, "training": settings.training}
    if step.spec.get("what") == TASK:
        train, _ = _labelled(step, store)
        task = (
            settings
            if isinstance(settings, TaskVectorConfig)
            else TaskVectorConfig.model_validate(shared)
        )
        return task_speed(step.base, train, task)
    language = (
        settings
        if isinstance(settings, LanguageVectorConfig)
        else LanguageVectorConfig.model_validate(shared)
    )
    return language_speed(step.base, store.texts(step.spec["text"]), language)


def _labelled(step: Step, store: Store) -> tuple[Examples, Examples]:
    """The training and validation data of a task's step, those of several languages together."""
    parts = []
    for name in ("train", "valid"):
        digests = step.spec[name]
        several = digests.values() if isinstance(digests, Mapping) else [digests]
        parts.append(joined([store.examples(digest) for digest in several]))
    return parts[0], parts[1]


def _vector_bytes(settings: FitConfig, speed: Speed) -> int:
    """The size of a vector's file; an adapter's is about as large."""
    k = getattr(settings, "k", None)
    return int(ENTRY * parse_k(k, speed.moved)) if k is not None else 0


def blocks_of(
    tokenizer: Any, lines: Sequence[str], training: LanguageTrainingConfig, length: int
) -> tuple[int, int]:
    """About how many blocks of tokens a text has to train on, and how many are held out, from some
    of its lines."""
    sample = _some(lines, SAMPLE_LINES)
    tokens = sum(
        len(ids) + 1
        for ids in tokenizer(sample, add_special_tokens=False, verbose=False)["input_ids"]
    )
    share = sum(map(len, sample)) / max(1, sum(map(len, lines)))
    blocks = max(2, round(tokens / share / max(1, length - 2)))
    most = training.held_out_blocks
    held_out = max(1, round(training.held_out * blocks))
    if most is not None:
        held_out = min(held_out, most)
    return blocks - held_out, held_out


def language_speed(base: str, lines: Sequence[str], settings: LanguageVectorConfig) -> Speed:
    """The speed of learning a language, timed on some lines of its text."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come when it is learnt
        start = prepare_language(base, _some(lines, SAMPLE_LINES), settings)
        length = min(settings.training.length, longest_input(start.model, load_tokenizer(base)))
        return _timed(start, settings.training, length)


def task_speed(base: str, train: Examples, settings: TaskVectorConfig) -> Speed:
    """The speed of learning a task, timed on some of its examples."""
    sample = train.at(_some(range(len(train)), SAMPLE_EXAMPLES))
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = prepare_task(base, {"": sample}, {"": sample}, settings)
        return _timed(start, settings.training, settings.training.length)


def _some(things: Sequence[Any], most: int) -> list[Any]:
    """So many of them at most, from everywhere among them."""
    return list(things[:: max(1, ceil(len(things) / most))])


def _timed(start: PreparedTraining, training: TrainingConfig, length: int) -> Speed:
    """The speed of a training that is about to start; its model is not to be used any more.

    The learning rate is 0: the steps take as long, and nothing can diverge.
    """
    model, objective = start.model, start.objective
    device = next(model.parameters()).device
    groups = parameter_groups(model)
    for name, weight in groups.backbone.items():
        weight.requires_grad_(name in groups.trainable)
    moved = [*groups.trainable.values(), *groups.trained_head.values()]
    optimizer = torch.optim.AdamW(moved, lr=0.0, fused=True)
    bf16 = training.precision == "bf16" or (training.precision == "auto" and bf16_pays(device))
    batches = _batches(objective, training.batch_size, device)
    resident = memory_in_use(device)

    nn.Module.train(model)
    durations: list[float] = []
    while len(durations) < 1 + TIMED and (len(durations) < 2 or sum(durations) < PATIENCE):
        began = monotonic()
        for _ in range(training.accumulate):
            with autocast(device, bf16):
                loss = objective.loss(model, next(batches))
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        _wait_for(device)
        durations.append(monotonic() - began)
    optimizer_bytes = 3 * FLOAT * sum(weight.numel() for weight in moved)  # gradients and moments
    batch_bytes = max(0, memory_in_use(device) - resident - optimizer_bytes)

    nn.Module.eval(model)
    batch = next(batches)
    began = monotonic()
    with torch.no_grad(), autocast(device, bf16):
        objective.loss(model, batch)
    _wait_for(device)
    example = (monotonic() - began) / training.batch_size

    parameters = sum(weight.numel() for weight in model.parameters())
    if device.type == "cpu":
        batch_bytes += max(0, resident - FLOAT * parameters)
    return Speed(
        mean(durations[1:]), example, parameters, groups.trainable_size, batch_bytes, length
    )


def _batches(objective: Any, size: int, device: torch.device) -> Iterator[dict[str, torch.Tensor]]:
    """Random batches of an objective's training data, without end."""
    generator = torch.Generator().manual_seed(0)
    while True:
        rows = torch.randint(len(objective.train), (size,), generator=generator).tolist()
        batch = objective.collate([objective.train[row] for row in rows])
        yield {name: tensor.to(device) for name, tensor in batch.items()}


def _wait_for(device: torch.device) -> None:
    """Let a GPU finish what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory_in_use(device: torch.device) -> int:
    """The most bytes that this process has held so far: of the GPU, else of the machine's
    memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource  # which Windows does not have

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def free_memory() -> int | None:
    """The bytes of memory that are free, on the GPU where there is one; None where the system does
    not tell."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    sizes = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines}
    return sizes.get("MemAvailable")


def free_disk(folder: Path) -> int:
    """The bytes that are free where a folder is, or will be."""
    existing = next(
        path for path in (folder.absolute(), *folder.absolute().parents) if path.exists()
    )
    return shutil.disk_usage(existing).free
