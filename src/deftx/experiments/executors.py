"""Having the steps of a plan carried out: in this process, in several on this machine, or on a Ray
cluster."""

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from subprocess import PIPE, Popen
from tempfile import TemporaryFile
from threading import Thread
from typing import IO, Any

from deftx.errors import DeftxError, unknown
from deftx.experiments.plan import Plan, Step
from deftx.experiments.steps import Outcome, attempt
from deftx.experiments.store import Store

PAUSE = 2.0  # seconds before a step that another process is at is looked at again
MANY = 10_000  # steps: Ray itself knows how many fit
RETRIES = 3  # of a step whose machine was lost

Submit = Callable[[Step], "Future[Outcome]"]
Report = Callable[
    [Step, str], None
]  # a step, and what became of it: "begun", or the first part of its outcome


def work_off(plan: Plan, store: Store, submit: Submit, room: int, report: Report) -> None:
    """Carry out all steps that are not done, at most `room` at once, each as soon as its inputs are
    there.

    A step that another process is at is tried again every PAUSE seconds, after all others. One that
    fails stops only those that need it. Raises DeftxError at the end that names the first one.
    """
    left = {step.id: step for step in plan.remaining(store.done)}
    running: dict[Future[Outcome], Step] = {}
    failed: list[tuple[Step, str]] = []
    busy: dict[str, float] = {}  # steps that another process is at, and when to try them again
    while left:
        taken = {step.id for step in running.values()} | {step.id for step, _ in failed}
        ready = [
            step
            for step in left.values()
            if step.id not in taken and all(map(store.done, step.inputs.values()))
        ]
        if not ready and not running:  # what is left needs what failed
            break
        due = [step for step in ready if busy.get(step.id, 0) <= time.monotonic()]
        for step in sorted(due, key=lambda step: step.id in busy)[: room - len(running)]:
            if step.id not in busy:
                report(step, "begun")
            running[submit(step)] = step
        if not running:
            time.sleep(PAUSE)
        for future in wait(running, PAUSE if busy else None, FIRST_COMPLETED).done:
            step, (became, why) = running.pop(future), future.result()
            if became != "in use" or step.id not in busy:
                report(step, became)
            if became == "failed":
                failed.append((step, why))
            elif became == "in use":
                busy[step.id] = time.monotonic() + PAUSE
        left = {step.id: step for step in left.values() if not store.done(step.id)}
    if failed:
        (first, why), more = failed[0], len(left) - 1
        raise DeftxError(
            f"{first.title} ({first.kind}): {why}"
            + (f"; {more} more steps are not done" if more else "")
        )


Executor = Callable[[Store], AbstractContextManager[Submit]]


def named(
    name: str, jobs: int, address: str | None, resources: dict[str, float | None]
) -> tuple[Executor, int]:
    """The executor of a name, and how many steps it is given at once.

    address, resources  of a Ray cluster, and what a step takes of it; None: one core and no GPU

    Raises DeftxError for an unknown name, and for what is for Ray where another is named.
    """
    given = {key: value for key, value in resources.items() if value is not None}
    if name == "ray":
        needed = {"num_cpus": 1.0, "num_gpus": 0.0} | given
        return partial(on_ray, address=address, resources=needed), jobs if jobs > 1 else MANY
    if name != "local":
        raise unknown("executor", name, ["local", "ray"])
    if address is not None or given:
        fix = "add --executor ray, or leave them out"
        raise DeftxError(f"--ray-address, --step-cpus and --step-gpus are for Ray: {fix}")
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
def processes(store: Store, jobs: int, threads: int | None = None) -> Iterator[Submit]:
    """Steps are carried out by `jobs` processes of so many `threads`; without these, they share out
    the machine's cores among them. They share out its GPUs too."""
    from deftx.training.distributed import visible_gpus

    gpus = visible_gpus()
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    command = [sys.executable, "-m", "deftx.experiments.executors", str(store.root)]
    idle: SimpleQueue[_Worker] = SimpleQueue()

    def checkpoint_dir(step: Step) -> Outcome:
        worker = idle.get()
        try:
            return worker.carry_out(step)
        finally:
            idle.put(worker)

    with ExitStack() as files, ThreadPoolExecutor(jobs) as pool:
        workers = []
        for place in range(jobs):
            own = {"OMP_NUM_THREADS": str(threads or max(1, (cores or 1) // jobs))}
            own |= {"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]} if gpus else {}
            said = files.enter_context(TemporaryFile("w+"))
            workers.append(worker := _Worker(command, {**os.environ, **own}, said))
            files.callback(worker.close)
            idle.put(worker)
        try:
            yield lambda step: pool.submit(checkpoint_dir, step)
        finally:  # after Ctrl-C and SIGTERM too
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                worker.end()


@dataclass(eq=False)
class _Worker:
    """A process that runs `main`, started when there is something to do, and once more where it
    ended by itself."""

    command: Sequence[str]
    environment: Mapping[str, str]
    said: IO[str]
    child: "Popen[str] | None" = None

    def carry_out(self, step: Step) -> Outcome:
        """Have it carry out a step."""
        if self.child is None:
            self.child = Popen(
                self.command,
                stdin=PIPE,
                stdout=PIPE,
                stderr=self.said,
                env=self.environment,
                text=True,
            )
        child = self.child
        assert child.stdin is not None
        assert child.stdout is not None
        with suppress(BrokenPipeError):  # it has ended since its last step
            child.stdin.write(step.to_json() + "\n")
            child.stdin.flush()
        if answer := child.stdout.readline():
            became, why = json.loads(answer)
            return became, why
        self.said.seek(0)
        last = next((line for line in reversed(self.said.readlines()) if line.strip()), "").strip()
        code = child.wait()
        self.close()
        return (
            "failed",
            f"its process ended with code {code}: {last or 'did it run out of memory?'}",
        )

    def end(self) -> None:
        """Have it end, whatever it is at."""
        if child := self.child:
            child.terminate()
            child.wait()

    def close(self) -> None:
        """Let go of a process that has ended."""
        child, self.child = self.child, None
        for pipe in filter(None, (child.stdin, child.stdout) if child else ()):
            with suppress(OSError):  # what was never read by it
                pipe.close()


def main() -> None:
    """Carry out the steps on standard input, one a line, with the store of the first argument;
    write their outcomes.

    Ends when standard input does, so with the process that started it, whatever it is at.
    """
    from deftx.messages import exit_on_sigterm, quiet_transformers

    steps: SimpleQueue[Step] = SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            steps.put(Step.from_json(line))
        os._exit(0)

    answers = os.dup(1)
    os.dup2(2, 1)  # nothing else is to be among the answers
    quiet_transformers()
    Thread(target=read, daemon=True).start()
    with exit_on_sigterm(0):
        while True:
            outcome = attempt(Store(Path(sys.argv[1])), steps.get())
            os.write(answers, f"{json.dumps(outcome)}\n".encode())


@contextmanager
def on_ray(store: Store, address: str | None, resources: dict[str, float]) -> Iterator[Submit]:
    """Steps are tasks of a Ray cluster, done again elsewhere where a machine is lost.

    address    of a running cluster, or "auto"; None starts one on this machine
    resources  what a step needs: num_cpus and num_gpus. All machines must see the store and the
               base at the same path

    Raises DeftxError where Ray is not installed or there is no such cluster.
    """
    try:
        ray: Any = import_module("ray")
    except ModuleNotFoundError:
        raise DeftxError("Ray is not installed: pip install 'deftx[ray]'") from None
    try:
        if address and address.count(":") == 1:  # Ray itself would try for minutes
            host, port = address.split(":")
            socket.create_connection((host, int(port)), 10).close()
        ray.init(
            address=address,
            log_to_driver=False,
            include_dashboard=False if address is None else None,
        )
    except (OSError, ValueError) as error:
        raise DeftxError(
            f"no Ray cluster at {address}: {' '.join(str(error).split())[:200]}"
        ) from None
    task = ray.remote(_on_a_node).options(max_retries=RETRIES, **resources)
    try:
        yield lambda step: task.remote(str(store.root), step.to_json()).future()
    finally:
        ray.shutdown()


def _on_a_node(store: str, step: str) -> Outcome:
    from deftx.messages import quiet_transformers

    quiet_transformers()
    return attempt(Store(Path(store)), Step.from_json(step))


if __name__ == "__main__":
    main()
