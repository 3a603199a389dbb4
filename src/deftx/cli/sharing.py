"""Sharing on the Hugging Face hub: a vector, or all vectors of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deftx.cli.app import app
from deftx.cli.options import VECTOR, Force, Out, option
from deftx.errors import DeftxError
from deftx.messages import quiet_hub

if TYPE_CHECKING:
    from deftx.hub.collection import CollectionItem


@app.command(
    epilog="Example: deftx push vectors/min you/xlmr-min --language min --license cc-by-sa-4.0"
)
def push(
    vector: Annotated[
        str,
        typer.Argument(
            help="Vector: its folder. Or the folder of a `deftx run` or `deftx transfer`: its"
            " vectors, each in a repository of its own, and a collection that lists them.",
            **VECTOR,
        ),
    ],
    repo: Annotated[
        str,
        typer.Argument(
            help="Repository on the hub; of a run, what comes before -task, -min and so on.",
            metavar="USER/NAME",
        ),
    ],
    private: Annotated[bool, option("Make the repository private.", "--private")] = False,
    revision: Annotated[str | None, option("Branch to push to.", metavar="BRANCH")] = None,
    message: Annotated[str | None, option("Message of the commit.", metavar="TEXT")] = None,
    base: Annotated[
        str | None,
        option(
            "Hub id of the base, where the vector was made on a folder with it.", metavar="MODEL"
        ),
    ] = None,
    language: Annotated[
        list[str] | None,
        option(
            "Language, as its ISO 639 code; may be repeated. Of a run NAME=CODE, where a language"
            " is not called by its code.",
            metavar="CODE",
        ),
    ] = None,
    dataset: Annotated[
        list[str] | None, option("Hub dataset of the training; may be repeated.", metavar="ID")
    ] = None,
    license: Annotated[str | None, option("Licence, such as apache-2.0.", metavar="NAME")] = None,
    variant: Annotated[
        str | None, option("Of a run: the variant whose vectors are meant.", metavar="NAME")
    ] = None,
    seed: Annotated[
        int | None, option("Of a run: the seed; by default the first.", metavar="NUMBER")
    ] = None,
    title: Annotated[
        str | None, option("Of a run: the collection's title; by default NAME.", metavar="TEXT")
    ] = None,
    dry_run: Annotated[
        bool, option("Of a run: only print what would go where.", "--dry-run")
    ] = False,
) -> None:
    """Put a vector, or all vectors of a run, on the Hugging Face hub, with model cards; log in with
    `hf auth login` or HF_TOKEN first."""
    quiet_hub()
    from deftx.experiments.published_run import run_folder
    from deftx.hub.share import push as push_vector

    of_one_vector = {"--revision": revision, "--message": message, "--dataset": dataset}
    of_a_run = {"--variant": variant, "--seed": seed, "--title": title, "--dry-run": dry_run}

    run = run_folder(Path(vector))
    if run is None:
        _refuse(of_a_run, f"{vector} is not the folder of a run")
        pinned = push_vector(
            vector,
            repo,
            private=private,
            revision=revision,
            message=message,
            base=base,
            languages=language or [],
            datasets=dataset or [],
            license=license,
        )
        print(f"{repo}: {vector} is on the hub, and stays there as {pinned}")
        return

    _refuse(of_one_vector, f"{vector} is the folder of a run")
    from deftx.experiments.published_run import vectors_to_publish

    items = vectors_to_publish(
        run,
        repo,
        variant=variant,
        seed=seed,
        codes=_codes(language or []),
        base=base,
        license=license,
    )
    _push_items(items, title or repo.split("/")[-1], private=private, dry_run=dry_run)


@app.command(epilog="Example: deftx pull you/xlmr-min --out vectors/min")
def pull(
    vector: Annotated[
        str, typer.Argument(help="Vector on the hub.", metavar="USER/NAME[@REVISION]")
    ],
    out: Out,
    force: Force = False,
) -> None:
    """Save a vector from the Hugging Face hub as a folder. Other commands take its id as it is."""
    quiet_hub()
    from deftx.hub.share import pull as pull_vector

    pulled = pull_vector(vector, out, force=force)
    kind = pulled.provenance.kind or "sparse"
    print(f"{out}: {kind} vector, k = {pulled.k:,}, from {vector}")


def _push_items(items: "list[CollectionItem]", title: str, *, private: bool, dry_run: bool) -> None:
    """Push the vectors of a run, or only print what would go where."""
    from deftx.hub.collection import push_collection

    if dry_run:
        for item in items:
            print(f"{item.repo}: {item.vector}; {item.note}")
        print(f"collection {title!r}: {len(items)} vectors; nothing was pushed")
        return
    description = "Sparse language and task vectors that add up, made with deftx (DeFT-X)."
    pushed = push_collection(
        items, title, description=description, private=private, said=lambda line: print(line)
    )
    print(f"{len(pushed.vectors)} vectors are on the hub; their page is {pushed.url}")


def _codes(typed: list[str]) -> dict[str, str]:
    """NAME=CODE, as typed: name of a language in the run -> its code."""
    codes = {}
    for text in typed:
        name, equals, code = text.partition("=")
        if not (name and equals and code):
            raise DeftxError(f"--language {text}: of a run write NAME=CODE, such as minang=min")
        codes[name] = code
    return codes


def _refuse(options: Mapping[str, Any], reason: str) -> None:
    """Raise DeftxError where one of the options was typed."""
    for name, value in options.items():
        if value not in (None, False, [], ()):
            raise DeftxError(f"{name} does not go with what is pushed: {reason}; leave it out")
