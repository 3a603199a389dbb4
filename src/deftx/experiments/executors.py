"""Having the steps of a plan carried out: in this process, in several on this machine, or on a Ray cluster."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from subprocess import PIPE, Popen
from typing import Any

from deftx.errors import DeftxError, unknown
from deftx.experiments.plan import Plan, Step
from deftx.experiments.steps import Outcome, attempt
from deftx.experiments.store import Store

PAUSE = 2.0  # seconds before a step that another process is at is looked at again
MANY = 10_000  # steps: Ray itself knows how many fit
RETRIES = 3  # of a step whose machine was lost
OUTPUT = "output-{}.txt"  # in a step's folder of work: what a process of its own said

Submit = Callable[[Step], "Future[Outcome]"]
Report = Callable[[Step, str], None]  # a step, and what became of it: "begun", or the first part of its outcome


def work_off(plan: Plan, store: Store, submit: Submit, room: int, report: Report) -> None:
    """Carry out all steps that are not done, at most `room` at once, each as soon as its inputs are there.

    A step that fails stops only those that need it. Raises DeftxError at the end that names the first one.
    """
    left = {step.id: step for step in plan.steps.values() if not store.done(step.id)}
    running: dict[Future[Outcome], Step] = {}
    failed: list[tuple[Step, str]] = []
    while left:
        taken = {step.id for step in running.values()} | {step.id for step, _ in failed}
        ready = [step for step in left.values() if step.id not in taken and all(map(store.done, step.inputs.values()))]
        for step in ready[: room - len(running)]:
            report(step, "begun")
            running[submit(step)] = step
        if not running:  # what is left needs what failed
            break
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            step, (became, why) = running.pop(future), future.result()
            report(step, became)
            if became == "failed":
                failed.append((step, why))
            elif became == "in use" and not running:
                time.sleep(PAUSE)
        left = {step.id: step for step in left.values() if not store.done(step.id)}
    if failed:
        (first, why), more = failed[0], len(left) - 1
        raise DeftxError(f"{first.title} ({first.kind}): {why}" + (f"; {more} more steps are not done" if more else ""))


Executor = Callable[[Store], AbstractContextManager[Submit]]


def named(name: str, jobs: int, address: str | None, resources: dict[str, float]) -> tuple[Executor, int]:
    """The executor of a name, and how many steps it is given at once."""
    if name == "ray":
        return partial(on_ray, address=address, resources=resources), jobs if jobs > 1 else MANY
    if name != "local":
        raise unknown("executor", name, ["local", "ray"])
    return (partial(processes, jobs=jobs), jobs) if jobs > 1 else (here, 1)


@contextmanager
def here(store: Store) -> Iterator[Submit]:
    """Steps are carried out one after the other, in this process."""

    def submit(step: Step) -> "Future[Outcome]":
        future: Future[Outcome] = Future()
        future.set_result(attempt(store, step))
        return future

    yield submit


@contextmanager
def processes(store: Store, jobs: int) -> Iterator[Submit]:
    """Each step has a process of its own; `jobs` of them share out the machine's cores, and its GPUs."""
    import torch

    gpus, cores = torch.cuda.device_count(), len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    places: SimpleQueue[int] = SimpleQueue()
    for place in range(jobs):
        places.put(place)
    children: set[Popen[str]] = set()

    def work(step: Step) -> Outcome:
        place = places.get()
        own = {"OMP_NUM_THREADS": str(max(1, (cores or 1) // jobs))}
        own |= {"CUDA_VISIBLE_DEVICES": str(place % gpus)} if gpus else {}
        try:
            return _in_a_process(store, step, {**os.environ, **own}, children)
        finally:
            places.put(place)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            yield lambda step: pool.submit(work, step)
        except BaseException:  # Ctrl-C and SIGTERM too
            pool.shutdown(wait=False, cancel_futures=True)
            for child in list(children):
                child.terminate()
            raise


def _in_a_process(store: Store, step: Step, environment: dict[str, str], children: "set[Popen[str]]") -> Outcome:
    """Have `main` carry out a step. It ends when its standard input does, so with this process."""
    output = store.work(step.id) / OUTPUT.format(os.getpid())
    output.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "deftx.experiments.executors", str(store.root)]
    with (
        output.open("w") as said,
        Popen(command, stdin=PIPE, stdout=PIPE, stderr=said, env=environment, text=True) as child,
    ):
        children.add(child)
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(step.to_json() + "\n")
        child.stdin.flush()
        answer = child.stdout.read()
        code = child.wait()
        children.discard(child)
    if code:
        return "failed", f"its process ended with code {code}; what it said is in {output}"
    output.unlink(missing_ok=True)
    became, why = json.loads(answer)
    return became, why


def main() -> None:
    """Carry out the step on standard input with the store of the first argument; write the outcome."""
    from threading import Thread

    from deftx.console import exit_on_sigterm, quiet_transformers

    step, answers = Step.from_json(sys.stdin.readline()), os.dup(1)
    os.dup2(2, 1)  # nothing else is to be among the answers
    Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()
    quiet_transformers()
    with exit_on_sigterm(1):
        outcome = attempt(Store(Path(sys.argv[1])), step)
    os.write(answers, json.dumps(outcome).encode())


@contextmanager
def on_ray(store: Store, address: str | None, resources: dict[str, float]) -> Iterator[Submit]:
    """Steps are tasks of a Ray cluster, done again elsewhere where a machine is lost.

    address    of a running cluster, or "auto"; None starts one on this machine
    resources  what a step needs: num_cpus and num_gpus. All machines must see the store and the base at the same path

    Raises DeftxError where Ray is not installed or there is no such cluster.
    """
    try:
        ray: Any = import_module("ray")
    except ModuleNotFoundError:
        raise DeftxError("Ray is not installed: pip install 'deftx[ray]'") from None
    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=False if address is None else None)
    except (ConnectionError, ValueError) as error:
        raise DeftxError(f"no Ray cluster at {address}: {' '.join(str(error).split())[:200]}") from None
    task = ray.remote(_on_a_node).options(max_retries=RETRIES, **resources)
    try:
        yield lambda step: task.remote(str(store.root), step.to_json()).future()
    finally:
        ray.shutdown()


def _on_a_node(store: str, step: str) -> Outcome:
    from deftx.console import quiet_transformers

    quiet_transformers()
    return attempt(Store(Path(store)), Step.from_json(step))


if __name__ == "__main__":
    main()
