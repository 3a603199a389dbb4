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

PAUSE = 2.0  # seconds before a step that another process is computing is tried again
MANY = 10_000  # steps: Ray itself knows how many fit
RETRIES = 3  # of a step whose machine was lost

Submit = Callable[[Step], "Future[Outcome]"]
# Is told a step, and what became of it: "begun", or the first part of its outcome
Report = Callable[[Step, str], None]
Executor = Callable[[Store], AbstractContextManager[Submit]]


def work_off(plan: Plan, store: Store, submit: Submit, room: int, report: Report) -> None:
    """Carry out all steps that are not done, each as soon as its inputs are there.

    A step that another process is computing is tried again every PAUSE seconds, after all others. A
    step that fails stops only those that need it.

    Args:
        plan: All steps.
        store: Where finished steps are.
        submit: Has a step carried out.
        room: How many steps may be under way at once.
        report: Is told of each step that begins or ends.

    Raises:
        DeftxError: A step failed: it names the first one, after all others were tried.
    """
    left = {step.id: step for step in plan.remaining(store.done)}
    running: dict[Future[Outcome], Step] = {}
    failed: list[tuple[Step, str]] = []
    # Steps that another process is computing, and when to try them again
    busy: dict[str, float] = {}
    while left:
        # Steps whose inputs are there
        taken = {step.id for step in running.values()}
        taken.update(step.id for step, _ in failed)
        ready = []
        for step in left.values():
            if step.id not in taken and all(map(store.done, step.inputs.values())):
                ready.append(step)
        if not ready and not running:  # what is left needs what failed
            break

        # Begin as many as there is room for, those last that another process is computing
        due = [step for step in ready if busy.get(step.id, 0) <= time.monotonic()]
        due.sort(key=lambda step: step.id in busy)
        free = room - len(running)
        for step in due[:free]:
            if step.id not in busy:
                report(step, "begun")
            future = submit(step)
            running[future] = step
        if not running:
            time.sleep(PAUSE)

        # Wait for the first that ends
        longest_wait = PAUSE if busy else None
        ended = wait(running, longest_wait, FIRST_COMPLETED).done
        for future in ended:
            step = running.pop(future)
            became, why = future.result()
            if became != "in use" or step.id not in busy:
                report(step, became)
            if became == "failed":
                failed.append((step, why))
            elif became == "in use":
                busy[step.id] = time.monotonic() + PAUSE
        left = {step.id: step for step in left.values() if not store.done(step.id)}

    if failed:
        step, why = failed[0]
        message = f"{step.title} ({step.kind}): {why}"
        more = len(left) - 1
        if more:
            message += f"; {more} more steps are not done"
        raise DeftxError(message)


def named(
    name: str, jobs: int, address: str | None, resources: dict[str, float | None]
) -> tuple[Executor, int]:
    """The executor of a name, and how many steps it is given at once.

    Args:
        name: `local` or `ray`.
        jobs: How many steps are carried out at once; 1 on Ray: as many as fit.
        address: Of a Ray cluster.
        resources: What a step takes of it (num_cpus, num_gpus); None: one core and no GPU.

    Raises:
        DeftxError: The name is unknown, or what is for Ray comes with another name.
    """
    chosen_resources = {key: value for key, value in resources.items() if value is not None}
    if name == "ray":
        needed = {"num_cpus": 1.0, "num_gpus": 0.0} | chosen_resources
        steps_at_once = jobs if jobs > 1 else MANY
        return partial(on_ray, address=address, resources=needed), steps_at_once
    if name != "local":
        raise unknown("executor", name, ["local", "ray"])
    if address is not None or chosen_resources:
        fix = "add --executor ray, or leave them out"
        raise DeftxError(f"--ray-address, --step-cpus and --step-gpus are for Ray: {fix}")
    if jobs > 1:
        return partial(processes, jobs=jobs), jobs
    return here, 1


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
    """Steps are carried out by several processes on this machine, which share out its GPUs.

    Args:
        store: Where finished steps are.
        jobs: The number of processes.
        threads: The threads of each; None: they share out the machine's cores.
    """
    from deftx.training.distributed import visible_gpus

    gpus = visible_gpus()
    if sys.platform == "linux":
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    if threads is None:
        threads = max(1, cores // jobs)
    command = [sys.executable, "-m", "deftx.experiments.executors", str(store.root)]
    idle: SimpleQueue[_Worker] = SimpleQueue()

    def carry_out(step: Step) -> Outcome:
        worker = idle.get()
        try:
            return worker.carry_out(step)
        finally:
            idle.put(worker)

    with ExitStack() as files, ThreadPoolExecutor(jobs) as pool:
        workers = []
        for number in range(jobs):
            environment = dict(os.environ)
            environment["OMP_NUM_THREADS"] = str(threads)
            if gpus:
                environment["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
            messages = files.enter_context(TemporaryFile("w+"))
            worker = _Worker(command, environment, messages)
            files.callback(worker.close)
            workers.append(worker)
            idle.put(worker)
        try:
            yield lambda step: pool.submit(carry_out, step)
        finally:  # after Ctrl-C and SIGTERM too
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                worker.end()


@dataclass(eq=False)
class _Worker:
    """A process that runs `main`.

    It is started when there is something to do, and once more where it ended by itself.

    Attributes:
        command: What starts it.
        environment: Its environment variables.
        messages: The file for its standard error.
        child: The process; None while there is none.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    messages: IO[str]
    child: "Popen[str] | None" = None

    def carry_out(self, step: Step) -> Outcome:
        """Have it carry out a step."""
        if self.child is None:
            self.child = Popen(
                self.command,
                stdin=PIPE,
                stdout=PIPE,
                stderr=self.messages,
                env=self.environment,
                text=True,
            )
        child = self.child
        assert child.stdin is not None
        assert child.stdout is not None
        with suppress(BrokenPipeError):  # it has ended since its last step
            child.stdin.write(step.to_json() + "\n")
            child.stdin.flush()
        answer = child.stdout.readline()
        if answer:
            became, why = json.loads(answer)
            return became, why

        # It has ended: its last message says why
        self.messages.seek(0)
        lines = [line.strip() for line in self.messages if line.strip()]
        last_line = lines[-1] if lines else "did it run out of memory?"
        code = child.wait()
        self.close()
        return "failed", f"its process ended with code {code}: {last_line}"

    def end(self) -> None:
        """Have it end, whatever it is computing."""
        if self.child is not None:
            self.child.terminate()
            self.child.wait()

    def close(self) -> None:
        """Let go of a process that has ended."""
        child = self.child
        self.child = None
        if child is None:
            return
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with suppress(OSError):  # what was never read by it
                    pipe.close()


def main() -> None:
    """Carry out the steps on standard input, one a line, and write their outcomes.

    The first argument is the store. Ends when standard input does, and so with the process that
    started it, whatever it is computing.
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
    folder = Path(sys.argv[1])
    with exit_on_sigterm(0):
        while True:
            step = steps.get()
            outcome = attempt(Store(folder), step)
            line = f"{json.dumps(outcome)}\n"
            os.write(answers, line.encode())


@contextmanager
def on_ray(store: Store, address: str | None, resources: dict[str, float]) -> Iterator[Submit]:
    """Steps are tasks of a Ray cluster, done again elsewhere where a machine is lost.

    All machines must see the store and the base at the same path.

    Args:
        store: Where finished steps are.
        address: Of a running cluster, or "auto"; None starts one on this machine.
        resources: What a step needs: num_cpus and num_gpus.

    Raises:
        DeftxError: Ray is not installed, or there is no such cluster.
    """
    try:
        ray: Any = import_module("ray")
    except ModuleNotFoundError:
        raise DeftxError("Ray is not installed: pip install 'deftx[ray]'") from None
    try:
        if address and address.count(":") == 1:  # Ray itself would try for minutes
            host, port = address.split(":")
            connection = socket.create_connection((host, int(port)), 10)
            connection.close()
        dashboard = False if address is None else None
        ray.init(address=address, log_to_driver=False, include_dashboard=dashboard)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DeftxError(f"no Ray cluster at {address}: {reason[:200]}") from None
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
