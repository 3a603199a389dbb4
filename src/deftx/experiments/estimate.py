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

    Attributes:
        seconds: Time of all its steps, one after the other.
        memory: The most bytes that a training holds, on the GPU where there is one.
        disk: Bytes that stay at the end.
        disk_state: Further bytes while a training is under way: it resumes from them if it is
            stopped.
    """

    seconds: float
    memory: int
    disk: int
    disk_state: int


@dataclass(frozen=True)
class Speed:
    """How fast one kind of training is on this machine, and what it holds in memory.

    Attributes:
        step: Seconds of an optimiser step.
        example: Seconds of evaluating one example, or one block of text.
        parameters: Numbers that the model has.
        moved: Those of them that phase 1 moves.
        batch: Bytes that a batch takes beside weights and optimiser, and on a processor the program
            itself.
        length: Tokens of a block of text.
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
        numbers = phase1_numbers(self.parameters, self.moved)
        return FLOAT * numbers + self.batch

    def seconds(self, examples: int, evaluated: int, training: TrainingConfig) -> float:
        """How long a training on so many examples takes, which is evaluated on so many others."""
        steps = total_steps(examples, training)
        evaluations = 1 + ceil(steps / training.evaluate_every)  # the start is evaluated too
        stepping = steps * self.step
        evaluating = evaluations * evaluated * self.example
        return stepping + evaluating


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
    tokenizer = load_tokenizer(base)
    blocks, held_out = blocks_of(tokenizer, lines, settings.training, speed.length)
    return _of_fit(speed, blocks, held_out, settings)


def estimate_task(
    base: str, train: Examples, valid: Examples, settings: TaskVectorConfig
) -> Estimate:
    """What `deftx.fit_task` will take."""
    speed = task_speed(base, train, settings)
    return _of_fit(speed, len(train), len(valid), settings)


def _of_fit(speed: Speed, examples: int, evaluated: int, settings: VectorConfig) -> Estimate:
    """What all phases of a fit take. Nothing but the vector stays.

    Args:
        speed: The speed of its trainings.
        examples: How many examples or blocks it trains on.
        evaluated: How many it is evaluated on.
        settings: Its settings.
    """
    # Time
    trainings = []
    if takes_phase1(settings):
        trainings.append(settings.of_phase1().training)
    if takes_halves(settings):  # two trainings of half the steps
        trainings.append(settings.of_phase1().training)
    if settings.phase2:
        trainings.append(settings.training)
    seconds = sum(speed.seconds(examples, evaluated, training) for training in trainings)

    # What is on the disk while it trains: what phase 1 gave, and the state of a training
    if takes_phase1(settings):
        phase1 = FLOAT * speed.moved
        disk_state = phase1 + STATE * phase1
    else:
        k = parse_k(settings.k, speed.moved)
        disk_state = FLOAT * 12 * k

    memory = memory_of(settings, speed)
    disk = _vector_bytes(settings, speed)
    return Estimate(seconds, memory, disk, disk_state)


def estimate_steps(steps: Sequence[Step], store: Store) -> Estimate:
    """What steps of a run will take; their data are in the store."""
    rates = seconds_by_cost(store)
    speeds: dict[tuple[Any, ...], Speed] = {}
    seconds = 0.0
    disk = 0
    memory = 0
    disk_state = 0
    for step in steps:
        # Time goes by what such steps took before, if there were any
        rate = rates.get(alike(step.kind, step.spec))
        if rate is not None:
            seconds += step.cost * rate
        if step.kind not in TRAINED:
            if rate is None:
                seconds += _scoring_seconds(step, speeds)
            continue

        # Each kind of training is timed once
        settings = step.settings
        assert settings is not None
        kind = _alike_in_speed(step, settings)
        if kind not in speeds:
            speeds[kind] = _speed_of(step, settings, store)
        speed = speeds[kind]
        if rate is None:
            seconds += _training_seconds(step, settings, speed, store)

        memory = max(memory, memory_of(settings, speed))
        disk_state = max(disk_state, STATE * FLOAT * speed.moved)
        if step.kind == "delta":
            disk += FLOAT * speed.moved
        else:
            disk += _vector_bytes(settings, speed)
    return Estimate(seconds, memory, disk, disk_state)


def seconds_left(steps: Sequence[Step], store: Store) -> float | None:
    """About how many seconds steps take, going by what such steps took before.

    Returns:
        None where there is a step like which none was carried out before.
    """
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
    rates_of_kind: dict[tuple[Any, ...], list[float]] = {}
    for record in store.records():
        if record.get("seconds"):
            rate = record["seconds"] / record["cost"]
            kind = alike(record["kind"], record)
            rates_of_kind.setdefault(kind, []).append(rate)
    return {kind: median(rates) for kind, rates in rates_of_kind.items()}


def alike(kind: str, about: Mapping[str, Any]) -> tuple[Any, ...]:
    """What steps have in common whose time goes with their cost."""
    settings = about.get("settings") or {}
    training = settings.get("training", {})
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
    return (
        step.spec.get("what"),
        step.base,
        training.batch_size,
        training.accumulate,
        training.length,
        training.precision,
        getattr(training, "head", None),
        getattr(settings, "task", None),
    )


def _training_seconds(step: Step, settings: FitConfig, speed: Speed, store: Store) -> float:
    """How long the training of a step takes."""
    has_training = step.kind != "vector" or getattr(settings, "phase2", True)
    if not has_training:
        return 0.0

    training = settings.training
    if step.kind == "delta" and isinstance(settings, VectorConfig):
        training = settings.of_phase1().training
    if step.spec.get("what") == TASK:
        train, valid = _labelled(step, store)
        examples = len(train)
        evaluated = len(valid)
    else:
        assert isinstance(training, LanguageTrainingConfig)
        lines = store.texts(step.spec["text"])
        tokenizer = load_tokenizer(step.base)
        examples, evaluated = blocks_of(tokenizer, lines, training, speed.length)
    seconds = speed.seconds(examples, evaluated, training)
    if step.spec.get("half"):  # one half of the data takes half of the steps
        return seconds / 2
    return seconds


def _scoring_seconds(step: Step, speeds: Mapping[tuple[Any, ...], Speed]) -> float:
    """How long it takes to score; nothing to speak of where no task is learnt beside it."""
    if step.kind != "score":
        return 0.0
    seconds_per_example = [speed.example for (what, *_), speed in speeds.items() if what == TASK]
    if not seconds_per_example:
        return 0.0
    return step.cost * mean(seconds_per_example)


def _speed_of(step: Step, settings: FitConfig, store: Store) -> Speed:
    """The speed of a step's training.

    A baseline's is taken to be that of a vector's training, which is no faster.
    """
    shared = {"seed": settings.seed, "training": settings.training}
    if step.spec.get("what") == TASK:
        if not isinstance(settings, TaskVectorConfig):
            settings = TaskVectorConfig.model_validate(shared)
        train, _ = _labelled(step, store)
        return task_speed(step.base, train, settings)

    if not isinstance(settings, LanguageVectorConfig):
        settings = LanguageVectorConfig.model_validate(shared)
    lines = store.texts(step.spec["text"])
    return language_speed(step.base, lines, settings)


def _labelled(step: Step, store: Store) -> tuple[Examples, Examples]:
    """The training and validation data of a task's step, those of several languages together."""
    train = _examples_of(step.spec["train"], store)
    valid = _examples_of(step.spec["valid"], store)
    return train, valid


def _examples_of(digests: str | Mapping[str, str], store: Store) -> Examples:
    """The examples of a digest, or of those of several languages."""
    if isinstance(digests, str):
        return store.examples(digests)
    return joined([store.examples(digest) for digest in digests.values()])


def _vector_bytes(settings: FitConfig, speed: Speed) -> int:
    """The size of a vector's file; an adapter's is about as large."""
    k = getattr(settings, "k", None)
    if k is None:
        return 0
    entries = parse_k(k, speed.moved)
    return int(ENTRY * entries)


def blocks_of(
    tokenizer: Any, lines: Sequence[str], training: LanguageTrainingConfig, length: int
) -> tuple[int, int]:
    """About how many blocks of tokens a text has to train on, and how many are held out.

    Args:
        tokenizer: The base's tokenizer.
        lines: The text, some of whose lines are tokenised.
        training: Says how much is held out.
        length: The tokens of a block.
    """
    # The tokens of a sample, and the share of the text's characters that it has
    sample = _sample(lines, SAMPLE_LINES)
    encoded = tokenizer(sample, add_special_tokens=False, verbose=False)
    tokens = sum(len(ids) + 1 for ids in encoded["input_ids"])
    sample_characters = sum(map(len, sample))
    all_characters = sum(map(len, lines))
    share = sample_characters / max(1, all_characters)

    # Blocks begin and end with a special token
    tokens_per_block = max(1, length - 2)
    blocks = max(2, round(tokens / share / tokens_per_block))
    held_out = max(1, round(training.held_out * blocks))
    if training.held_out_blocks is not None:
        held_out = min(held_out, training.held_out_blocks)
    return blocks - held_out, held_out


def language_speed(base: str, lines: Sequence[str], settings: LanguageVectorConfig) -> Speed:
    """The speed of learning a language, timed on some lines of its text."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come when it is learnt
        sample = _sample(lines, SAMPLE_LINES)
        start = prepare_language(base, sample, settings)
        longest = longest_input(start.model, load_tokenizer(base))
        length = min(settings.training.length, longest)
        return _timed(start, settings.training, length)


def task_speed(base: str, train: Examples, settings: TaskVectorConfig) -> Speed:
    """The speed of learning a task, timed on some of its examples."""
    rows = _sample(range(len(train)), SAMPLE_EXAMPLES)
    sample = train.at(rows)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = prepare_task(base, {"": sample}, {"": sample}, settings)
        return _timed(start, settings.training, settings.training.length)


def _sample(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the items, evenly spaced."""
    step = max(1, ceil(len(items) / most))
    return list(items[::step])


def _timed(start: PreparedTraining, training: TrainingConfig, length: int) -> Speed:
    """The speed of a training that is about to start; its model is not to be used any more.

    The learning rate is 0: the steps take as long, and nothing can diverge.
    """
    # An optimiser as phase 1 has it
    model = start.model
    objective = start.objective
    device = next(model.parameters()).device
    groups = parameter_groups(model)
    for name, weight in groups.backbone.items():
        weight.requires_grad_(name in groups.trainable)
    moved = [*groups.trainable.values(), *groups.trained_head.values()]
    optimizer = torch.optim.AdamW(moved, lr=0.0, fused=True)
    bf16 = training.precision == "bf16"
    if training.precision == "auto":
        bf16 = bf16_pays(device)
    batches = _batches(objective, training.batch_size, device)
    resident = memory_in_use(device)

    # Steps: the first one warms up
    nn.Module.train(model)
    durations: list[float] = []
    while len(durations) < 1 + TIMED:
        if len(durations) >= 2 and sum(durations) >= PATIENCE:
            break
        began = monotonic()
        for _ in range(training.accumulate):
            with autocast(device, bf16):
                loss = objective.loss(model, next(batches))
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        _wait_for(device)
        durations.append(monotonic() - began)
    seconds_per_step = mean(durations[1:])

    # Memory: what was not there before, but for gradients and moments
    numbers_moved = sum(weight.numel() for weight in moved)
    optimizer_bytes = 3 * FLOAT * numbers_moved
    batch_bytes = max(0, memory_in_use(device) - resident - optimizer_bytes)
    parameters = sum(weight.numel() for weight in model.parameters())
    if device.type == "cpu":  # the program itself
        batch_bytes += max(0, resident - FLOAT * parameters)

    # Evaluation
    nn.Module.eval(model)
    batch = next(batches)
    began = monotonic()
    with torch.no_grad(), autocast(device, bf16):
        objective.loss(model, batch)
    _wait_for(device)
    seconds_per_example = (monotonic() - began) / training.batch_size

    return Speed(
        step=seconds_per_step,
        example=seconds_per_example,
        parameters=parameters,
        moved=groups.trainable_size,
        batch=batch_bytes,
        length=length,
    )


def _batches(objective: Any, size: int, device: torch.device) -> Iterator[dict[str, torch.Tensor]]:
    """Random batches of an objective's training data, without end."""
    generator = torch.Generator().manual_seed(0)
    train = objective.train
    while True:
        rows = torch.randint(len(train), (size,), generator=generator).tolist()
        batch = objective.collate([train[row] for row in rows])
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
    """The bytes of memory that are free, on the GPU where there is one.

    Returns:
        None where the system does not tell.
    """
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, size = line.partition(":")
        if name == "MemAvailable":
            kibibytes, *_ = size.split()
            return 1024 * int(kibibytes)
    return None


def free_disk(folder: Path) -> int:
    """The bytes that are free where a folder is, or will be."""
    folder = folder.absolute()
    existing = [path for path in (folder, *folder.parents) if path.exists()]
    innermost = existing[0]
    return shutil.disk_usage(innermost).free
