"""Many languages behind one server, beside a model for each: `python benchmarks/serve.py [--shape
nano]`.

Ours is `deftx serve`'s application on a Switcher; the plain way is the same application on one
composed model for each language. Every client asks for one text in a random language, over loopback
and a connection that it keeps, and asks again when it has the answer. The weights are random: they
cost as much as trained ones. Clients and server share the machine, and the ways take turns. Memory
is what a server holds in the end, beside what it held before it had a model; a switch is from one
language to another, measured before any request.
"""

import argparse
import http.client
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory

import torch
import uvicorn
from measure import machine
from torch import Tensor
from transformers import AutoConfig, AutoModelForMaskedLM

from deftx.cli.output import print_table
from deftx.core.parameters import parameter_groups
from deftx.core.select import parse_k
from deftx.core.tensors import Head, SparseTensor
from deftx.core.vector import SparseVector
from deftx.data.examples import Examples
from deftx.experiments.demo.languages import SOURCE, plain_text
from deftx.experiments.demo.run import BASE
from deftx.models.compose import compose, trained_length
from deftx.models.heads import load_task_model
from deftx.models.loading import place
from deftx.models.switcher import Switcher
from deftx.models.tokenizers import load_tokenizer
from deftx.serving.app import make_app
from deftx.tasks.classification import probabilities

LABELS = ("negative", "neutral", "positive")
TASK, LANGUAGE = "5.1%", "2.8%"  # of the tunable entries, as in the paper
NANO = {
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
}
XLMR = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
SHAPES = {  # what differs from the demo's base
    "demo": {},
    "nano": {**NANO, "vocab_size": 16_000, "max_position_embeddings": 258},
    "base": {**XLMR, "vocab_size": 250_002, "max_position_embeddings": 514},
}


def vector_of(base: Path, k: str, seed: int, labels: tuple[str, ...] = ()) -> SparseVector:
    """A vector of k random entries, the same share of every tensor."""
    model, generator = load_task_model(base, LABELS), torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in parameter_groups(model).trainable.items():
        places = (
            torch.randperm(weight.numel(), generator=generator)[: parse_k(k, weight.numel())]
            .sort()
            .values
        )
        values = torch.randn(len(places), generator=generator) / 100
        tensors[name] = SparseTensor(places, values, tuple(weight.shape))
    top = {name: weight.detach().clone() for name, weight in parameter_groups(model).head.items()}
    return SparseVector(tensors, Head(top, labels) if labels else None)


class Dedicated:
    """The plain way: a composed model for each language, with what the application needs of a
    Switcher."""

    def __init__(
        self, base: Path, task: SparseVector, languages: Mapping[str, SparseVector]
    ) -> None:
        self.models = {name: compose(base, task, vector) for name, vector in languages.items()}
        for model in self.models.values():
            place(model)
        self.tokenizer, self.languages, self.labels = load_tokenizer(base), tuple(languages), LABELS
        self.kind, self.pairs = "classification", None
        self.length = trained_length(next(iter(self.models.values())), self.tokenizer, task)

    def probabilities(self, examples: Examples, languages: Sequence[str]) -> Tensor:
        """Of examples of one language."""
        return probabilities(self.models[languages[0]], self.tokenizer, examples, self.length)


WAYS = {"ours": Switcher, "plain": Dedicated}


def serve(way: str, shape: str, count: int) -> None:
    """Serve `count` languages on a base of a shape; says its port, the bytes of memory that it held
    before, and the seconds of a switch, when it is ready."""
    with TemporaryDirectory() as folder:
        base = Path(folder)
        config = AutoConfig.from_pretrained(BASE)
        config.update(SHAPES[shape])
        torch.manual_seed(0)
        AutoModelForMaskedLM.from_config(config, dtype=torch.float32).save_pretrained(base)
        load_tokenizer(BASE).save_pretrained(base)
        languages = {
            f"language{number}": vector_of(base, LANGUAGE, number) for number in range(count)
        }
        before = held("self")
        models = WAYS[way](base, vector_of(base, TASK, count, LABELS), languages)
    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(listening.getsockname()[1], before, switch(models), flush=True)
    uvicorn.Server(uvicorn.Config(make_app(models), log_level="warning", access_log=False)).run(
        sockets=[listening]
    )


def switch(models: Switcher | Dedicated) -> float:
    """The median seconds of a switch to another language; of models of their own, none."""
    times = [0.0]
    for name in 3 * models.languages if isinstance(models, Switcher) else ():
        start = time.perf_counter()
        with models.language(name):
            times.append(time.perf_counter() - start)
    return median(times[2:] or times)


def held(process: int | str) -> int:
    """The bytes of memory that a process holds."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


@contextmanager
def running(
    way: str, options: argparse.Namespace
) -> Iterator[tuple[int, Callable[[], int], float]]:
    """Port of a server in a process of its own, what tells the memory of its models, and the
    seconds of a switch."""
    shape = ["--shape", options.shape, "--languages", str(options.languages)]
    with subprocess.Popen(
        [sys.executable, __file__, "--serve", way, *shape], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout
        port, before, seconds = server.stdout.readline().split()
        yield int(port), lambda: held(server.pid) - int(before), float(seconds)
        server.terminate()


def load(port: int, options: argparse.Namespace) -> list[float]:
    """The seconds that every answer took, of all that clients got within the time."""
    texts, times = plain_text(SOURCE, 200, 0), list[float]()
    end = time.perf_counter() + options.seconds

    def client(seed: int) -> None:
        draw, connection = random.Random(seed), http.client.HTTPConnection("127.0.0.1", port)
        while (start := time.perf_counter()) < end:
            language = f"language{draw.randrange(options.languages)}"
            body = json.dumps({"texts": [draw.choice(texts)], "language": language})
            connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            assert json.loads(answer.read())["predictions"][0]["language"] == language
            times.append(time.perf_counter() - start)
        connection.close()

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(options.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


def main() -> None:
    """Print the table; or, with `--serve`, be one of the servers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shape",
        choices=SHAPES,
        default="demo",
        help="of the demo's base, of 17 million weights, or of XLM-R base",
    )
    parser.add_argument("--languages", type=int, default=8)
    parser.add_argument("--clients", type=int, default=16, help="that ask at once")
    parser.add_argument("--seconds", type=float, default=5, help="of load, for each way and round")
    parser.add_argument("--repeat", type=int, default=3, help="rounds of both ways")
    parser.add_argument("--serve", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.shape, options.languages)
        return
    print(
        f"{machine()}; shape {options.shape}, {options.languages} languages,"
        f" {options.clients} clients\n"
    )
    with running("ours", options) as ours, running("plain", options) as plain:
        servers, times = (
            {"ours": ours, "plain": plain},
            {"ours": list[float](), "plain": list[float]()},
        )
        for _ in range(options.repeat):
            for way, (port, *_) in servers.items():
                times[way] += load(port, options)
        memory = {way: tell() for way, (_, tell, _) in servers.items()}
    rows = []
    for way, took in times.items():
        cuts = quantiles(took, n=100)
        rate = len(took) / options.seconds / options.repeat
        rows.append(
            [
                way,
                f"{rate:.0f}",
                f"{1e3 * cuts[49]:.0f} ms",
                f"{1e3 * cuts[98]:.0f} ms",
                f"{memory[way] / 1e6:.0f} MB",
                f"{1e3 * servers[way][2]:.1f} ms" if servers[way][2] else "",
            ]
        )
    print_table(["", "requests a second", "median", "99th percentile", "memory", "a switch"], rows)


if __name__ == "__main__":
    main()
