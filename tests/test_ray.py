"""A recipe on a Ray cluster of two nodes on this machine, one of them lost on the way."""

import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import yaml
from tiny import save_base, sentences
from tiny_run import RECIPE, labelled, same

from deftx.errors import DeftxError
from deftx.experiments.executors import MANY, on_ray
from deftx.experiments.recipe import load_recipe
from deftx.experiments.run import run_recipe
from deftx.experiments.store import Store

pytestmark = pytest.mark.filterwarnings("default")  # what Ray warns of is not ours


@pytest.mark.slow
def test_a_node_that_is_lost_costs_nothing_but_time(tmp_path: Path) -> None:
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    save_base(tmp_path / "base")
    for number, name in enumerate(["src", "tar"]):
        (tmp_path / f"{name}.txt").write_text("\n".join(sentences(60, number)))
        labelled(tmp_path / f"{name}.tsv", number)
    variants = {name: RECIPE["variants"][name] for name in ("LT-SFT", "DeFT-X")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "variants": variants}))
    recipe = load_recipe(tmp_path / "recipe.yaml")
    alone = run_recipe(recipe, tmp_path / "alone", tmp_path / "store1")

    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    lost = cluster.add_node(num_cpus=1)
    store, events = Store(tmp_path / "store2"), list[str]()

    def lose() -> None:
        while len(list(store.root.glob("work/*/log.txt"))) < 2:  # both nodes are at work
            time.sleep(0.05)
        cluster.remove_node(lost, allow_graceful=False)
        events.append(f"lost after {len(list(store.steps.glob('[!.]*')))} steps")

    thread = threading.Thread(target=lose)
    thread.start()
    try:
        executor = partial(on_ray, address=cluster.address, resources={"num_cpus": 1})
        on_cluster = run_recipe(recipe, tmp_path / "ray", store.root, executor, MANY)
    finally:
        thread.join(60)
        cluster.shutdown()
    assert on_cluster == alone
    assert events, "no node was lost"
    for step in (tmp_path / "store1" / "steps").glob("vector-*"):
        assert same(step / "vector", store.folder(step.name) / "vector")


def test_a_cluster_that_is_not_there_is_an_error_of_one_line(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with (
        pytest.raises(DeftxError, match="no Ray cluster at"),
        on_ray(Store(tmp_path), "nowhere:1", {}),
    ):
        pass


def test_without_ray_there_is_a_line_that_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(DeftxError, match=r"pip install 'deftx\[ray\]'"),
        on_ray(Store(tmp_path), None, {}),
    ):
        pass
