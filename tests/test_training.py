"""The training loop: the steps a plain loop would take, the best of them kept, and a clean stop
when it diverges."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from torch import nn

from deftx.config import LanguageTrainingConfig, TaskTrainingConfig, TrainingConfig
from deftx.core.parameters import SPARSE_VALUES, parameter_groups
from deftx.data.examples import Examples
from deftx.errors import Diverged
from deftx.models.heads import load_task_model
from deftx.models.loading import load_language_model
from deftx.objectives.masked_lm import masked_lm, masked_loss
from deftx.tasks.base import supervised
from deftx.tasks.classification import CLASSIFICATION
from deftx.training import loop
from deftx.training.loop import TrainableState, total_steps, train
from deftx.training.precision import autocast, bf16_pays
from deftx.training.random_streams import generator

TOKENIZER = tiny.tokenizer()
QUICK = TrainingConfig(
    learning_rate=1e-3, batch_size=2, epochs=1, evaluate_every=100, precision="fp32"
)
START_SCORE = 7.0  # before the first step
IDS = torch.randint(5, 75, (7, 8), generator=torch.Generator().manual_seed(0))


@dataclass
class Scripted:
    """Masked language modelling on fixed batches in a fixed order; scores and losses as a test
    wants them."""

    train: Any = field(default_factory=lambda: list(IDS))
    scores: list[float] = field(default_factory=lambda: [1.0] * 99)
    faults: dict[int, float] = field(
        default_factory=dict
    )  # number of a loss -> what it is multiplied with
    greater_is_better: bool = False
    watch: Any = None  # called with the model at each validation
    metric: str = "loss"
    digest: str = "scripted"

    def __post_init__(self):
        self.losses, self.autocast, self.started = 0, set(), False

    def collate(self, examples, generator=None):
        ids = torch.stack(examples)
        return {"input_ids": ids, "labels": ids.where(ids % 3 == 0, -100)}

    def loss_denominator(self, batch):
        return int((batch["labels"] >= 0).sum())

    def loss(self, model, batch):
        self.losses += 1
        self.autocast.add(torch.is_autocast_enabled("cpu"))
        return masked_loss(model, batch["input_ids"], batch["labels"]) * self.faults.get(
            self.losses, 1.0
        )

    def validate(self, model, batch_size):
        self.autocast.add(torch.is_autocast_enabled("cpu"))
        assert not model.training
        assert not torch.is_grad_enabled()
        if not self.started:
            self.started = True
            return {self.metric: START_SCORE, "other": 0.5}
        if self.watch:
            self.watch(model)
        return {self.metric: self.scores.pop(0), "other": 0.5}


def made():
    """A tiny model without dropout, so that a plain loop takes the same steps."""
    torch.manual_seed(0)
    model = tiny.xlmr()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def state_of(model, with_head=True):
    body = list(parameter_groups(model).backbone.values())
    anchors = [weight.detach().clone() for weight in body]
    return TrainableState(
        body, anchors, list(parameter_groups(model).head.values()) if with_head else []
    )


def copies(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def order_of(seed, epoch):
    """The order of an epoch, as `train` draws it."""
    return torch.randperm(len(IDS), generator=generator(seed, "order", epoch))


def plain_loop(model, training, steps, penalty="before clipping", seed=0):
    """What `train` should do, written out: penalty by autograd, clipping, AdamW, linear decay."""
    body, everything = list(parameter_groups(model).backbone.values()), list(model.parameters())
    start = [weight.detach().clone() for weight in body]
    weight_of_penalty = training.l1 / sum(weight.numel() for weight in everything)
    optimiser = torch.optim.AdamW(everything, training.learning_rate, weight_decay=0.0)
    objective, groups = Scripted(), []
    for epoch in range(steps):
        groups += order_of(seed, epoch).split(training.batch_size * training.accumulate)
    model.train()
    for step, group in enumerate(groups[:steps]):
        optimiser.zero_grad()
        objective.loss(model, objective.collate(list(IDS[group]))).backward()  # one large batch
        distance = sum(
            (weight - before).abs().sum() for weight, before in zip(body, start, strict=True)
        )
        if penalty == "before clipping":
            (weight_of_penalty * distance).backward()
        nn.utils.clip_grad_norm_(everything, training.clip)
        if penalty == "after clipping":
            (weight_of_penalty * distance).backward()
        optimiser.param_groups[0]["lr"] = training.learning_rate * (1 - step / steps)
        optimiser.step()


def furthest(one, other):
    return max(
        (a - b).abs().max().item()
        for a, b in zip(one.parameters(), other.parameters(), strict=True)
    )


@pytest.mark.parametrize("l1", [0.0, 40.0])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_the_steps_are_those_of_a_plain_loop(accumulate, l1):
    """Seven examples in batches of two: with three accumulated, the last step of an epoch has one
    batch."""
    training = QUICK.model_copy(
        update={"accumulate": accumulate, "l1": l1, "max_steps": 9, "epochs": 99, "clip": 0.7}
    )
    model, reference = made(), made()
    trained = train(model, Scripted(), training, state_of(model), seed=0)
    plain_loop(reference, training, 9)
    assert trained.steps == 9
    assert furthest(model, made()) > 4e-3
    key_biases = [name for name, _ in model.named_parameters() if name.endswith("key.bias")]
    assert (
        len(key_biases) > 0
    )  # their true gradient is 0: which way the penalty pulls them is rounding's choice
    with torch.no_grad():
        for name in key_biases:
            model.get_parameter(name).copy_(reference.get_parameter(name))
    assert furthest(model, reference) < 1e-5


def test_the_penalty_matters_and_is_clipped_with_the_rest():
    """The test above would not notice a penalty that is forgotten or added too late, were these not
    far apart."""
    training = QUICK.model_copy(update={"l1": 40.0, "clip": 0.7})
    references = [made(), made(), made()]
    plain_loop(references[0], training, 9)
    plain_loop(references[1], training, 9, penalty="after clipping")
    plain_loop(references[2], training, 9, penalty="none")
    assert furthest(references[0], references[1]) > 1e-3
    assert furthest(references[0], references[2]) > 1e-3


def test_the_penalty_pulls_towards_the_start_that_is_given():
    """In phase 2 one flat parameter moves; N stays the number of all parameters of the model."""
    model = made()
    flat = nn.Parameter(torch.tensor([1.0, -2.0, 3.0, 0.0]))
    model.register_parameter(SPARSE_VALUES, flat)
    start = torch.tensor([0.0, 0.0, 4.0, 0.0])
    size = sum(weight.numel() for weight in made().parameters())
    gradients = []

    class Flat(Scripted):
        def loss(self, model, batch):
            return 0.0 * flat.sum()

    flat.register_post_accumulate_grad_hook(lambda weight: gradients.append(weight.grad))
    training = QUICK.model_copy(update={"l1": 0.1 * size, "clip": 1e9, "max_steps": 1})
    train(model, Flat(), training, TrainableState([flat], [start]), seed=0)
    torch.testing.assert_close(gradients[0], torch.tensor([0.1, -0.1, -0.1, 0.0]))


def test_only_what_is_moving_moves():
    model = made()
    before, body = copies(model), parameter_groups(model).backbone
    for weight in [*body.values(), *parameter_groups(model).head.values()]:
        weight.requires_grad_(False)
    chosen = body["encoder.layer.0.output.dense.weight"]
    chosen.requires_grad_(True)
    state = TrainableState([chosen], [chosen.detach().clone()])
    train(model, Scripted(), QUICK.model_copy(update={"l1": 5.0}), state, seed=0)
    moved = [
        name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])
    ]
    assert moved == ["roberta.encoder.layer.0.output.dense.weight"]


@pytest.mark.parametrize(
    ("scores", "greater", "best"),
    [
        ([3.0, 1.0, 2.0], False, 4),
        ([3.0, 1.0, 2.0], True, 2),
        ([1.0, 1.0, 1.0], True, 2),
        ([1.0, 1.0, 1.0], False, 2),
        ([0.0, 0.0, 0.1], True, 5),
        ([-1.0, -2.0, -3.0], False, 5),
    ],
)
def test_the_best_evaluated_step_is_kept_the_first_of_equals(scores, greater, best):
    model, seen = made(), []
    objective = Scripted(
        scores=list(scores), greater_is_better=greater, watch=lambda m: seen.append(copies(m))
    )
    trained = train(
        model,
        objective,
        QUICK.model_copy(update={"max_steps": 5, "epochs": 9, "evaluate_every": 2}),
        state_of(model),
        seed=0,
    )
    number = [2, 4, 5].index(best)
    assert (trained.best_step, trained.best_score) == (best, scores[number])
    assert same(copies(model), seen[number])
    assert not any(same(seen[number], other) for other in seen[:number] + seen[number + 1 :])


@pytest.mark.parametrize("average", [2, 3, 4, 9])
def test_the_mean_of_the_last_evaluated_states_is_left_however_they_score(average):
    """Seven steps, evaluated after 2, 4, 6 and 7: the best one is the first."""
    seen, model = [], made()
    objective = Scripted(
        scores=[0.1, 0.5, 0.4, 0.3, 0.2], watch=lambda model: seen.append(copies(model))
    )
    training = QUICK.model_copy(update={"max_steps": 7, "epochs": 99, "evaluate_every": 2})
    trained = train(model, objective, training, state_of(model), seed=0, average=average)
    assert len(seen) == 5
    for name, weight in copies(model).items():
        mean = torch.stack([state[name].double() for state in seen[:4][-average:]]).mean(0)
        torch.testing.assert_close(weight.double(), mean, rtol=1e-6, atol=1e-7)
        assert torch.equal(weight, seen[4][name])
    assert not same(copies(model), seen[3])
    assert (trained.best_step, trained.best_score) == (7, 0.2)
    assert [row["step"] for row in trained.history if "eval_loss" in row] == [2, 4, 6, 7, 7]


def test_where_means_are_wanted_a_bad_loss_leaves_the_best_state_all_the_same():
    seen, model = [], made()
    objective = Scripted(
        scores=[0.1, 0.5], faults={6: float("nan")}, watch=lambda model: seen.append(copies(model))
    )
    training = QUICK.model_copy(update={"max_steps": 7, "epochs": 99, "evaluate_every": 2})
    with pytest.raises(Diverged, match="the state of step 2 is kept"):
        train(model, objective, training, state_of(model), seed=0, average=9)
    assert same(copies(model), seen[0])


def test_the_score_of_the_start_is_in_the_result_and_is_no_best_one():
    model = made()
    trained = train(model, Scripted(scores=[9.0]), QUICK, state_of(model), seed=0)
    assert (trained.start_score, trained.best_score, trained.best_step) == (START_SCORE, 9.0, 4)


def test_another_seed_orders_the_data_otherwise_and_every_epoch_has_an_order_of_its_own():
    seen = []

    class Watched(Scripted):
        def collate(self, examples, generator=None):
            seen.extend(tuple(ids.tolist()) for ids in examples)
            return super().collate(examples)

    orders = []
    for seed in (0, 0, 1):
        model = made()
        train(model, Watched(), QUICK.model_copy(update={"epochs": 2}), state_of(model), seed=seed)
        orders.append([tuple(seen[:7]), tuple(seen[7:])])
        seen.clear()
    everything = {tuple(ids.tolist()) for ids in IDS}
    assert all(set(epoch) == everything for order in orders for epoch in order)
    assert orders[0] == orders[1]
    assert len({orders[0][0], orders[0][1], orders[2][0], orders[2][1]}) == 4


def test_the_callers_random_numbers_are_as_if_nothing_had_been_trained():
    model = made()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(model, Scripted(), QUICK, state_of(model), seed=0)
    assert torch.equal(torch.rand(3), expected)


def test_the_log_has_every_evaluation_and_training_losses():
    model = made()
    training = QUICK.model_copy(update={"max_steps": 6, "epochs": 9, "evaluate_every": 4})
    trained = train(model, Scripted(scores=[3.0, 2.0]), training, state_of(model), seed=0)
    evaluations = [row for row in trained.history if "eval_loss" in row]
    assert evaluations == [
        {"step": 4, "epoch": 1.0, "eval_loss": 3.0, "eval_other": 0.5},
        {"step": 6, "epoch": 1.5, "eval_loss": 2.0, "eval_other": 0.5},
    ]
    losses = [row["train_loss"] for row in trained.history if "train_loss" in row]
    assert len(losses) == 6
    assert all(3 < loss < 6 for loss in losses)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_logged_losses_are_means_whatever_is_accumulated(accumulate):
    model = made()
    training = QUICK.model_copy(
        update={"accumulate": accumulate, "learning_rate": 1e-9, "batch_size": 1}
    )
    trained = train(model, Scripted(), training, state_of(model), seed=0)
    objective, model = Scripted(), made()
    expected = [
        objective.loss(model, objective.collate(list(IDS[rows]))).item()
        for rows in order_of(0, 0).split(accumulate)
    ]
    losses = [row["train_loss"] for row in trained.history if "train_loss" in row]
    assert losses == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "examples", "steps"),
    [
        ({"epochs": 3}, 10, 15),
        ({"epochs": 3}, 11, 18),
        ({"epochs": 3, "accumulate": 2}, 11, 9),
        ({"epochs": 3, "accumulate": 4}, 11, 6),
        ({"epochs": 0.5}, 10, 3),
        ({"epochs": 100, "max_steps": 20}, 10, 20),
        ({"epochs": 2, "max_steps": 20}, 10, 10),
        ({"epochs": 2, "max_steps": 20, "min_steps": 15}, 10, 15),
        ({"epochs": 100, "max_steps": 20, "min_steps": 15}, 10, 20),
        ({"epochs": 0.001}, 1, 1),
    ],
)
def test_steps_are_the_lesser_of_epochs_and_most_steps_but_at_least_the_fewest(
    settings, examples, steps
):
    assert total_steps(examples, TrainingConfig(batch_size=2, **settings)) == steps


def test_the_steps_that_are_counted_are_taken():
    model, training = made(), QUICK.model_copy(update={"epochs": 2.5, "accumulate": 3})
    objective = Scripted()
    trained = train(model, objective, training, state_of(model), seed=0)
    assert trained.steps == trained.best_step == total_steps(7, training) == 5
    assert objective.losses == 3 + 1 + 3 + 1 + 3


@pytest.mark.parametrize("fault", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("evaluated", [True, False])
def test_a_loss_that_is_not_finite_stops_at_its_step_with_the_best_state(evaluated, fault):
    model, seen = made(), []
    start = copies(model)
    objective = Scripted(
        scores=[2.0, 1.0, 3.0], faults={8: fault}, watch=lambda m: seen.append(copies(m))
    )
    training = QUICK.model_copy(update={"epochs": 9, "evaluate_every": 2 if evaluated else 100})
    with pytest.raises(Diverged) as caught:
        train(model, objective, training, state_of(model), seed=0, title="language: phase 1")
    kept = "the state of step 4 is kept" if evaluated else "nothing had been evaluated yet"
    message = (
        f"language: phase 1: the loss became {fault} at step 8; {kept}; lower the learning"
        " rate or check the data"
    )
    assert str(caught.value) == message
    assert same(copies(model), seen[1] if evaluated else start)
    assert objective.losses == 8


def test_a_bad_loss_in_the_midst_of_accumulation_names_its_step():
    model, training = made(), QUICK.model_copy(update={"accumulate": 2, "epochs": 9})
    with pytest.raises(Diverged, match="at step 2;"):
        train(model, Scripted(faults={3: float("nan")}), training, state_of(model), seed=0)


def test_a_held_out_score_that_is_not_a_number_is_no_best_score():
    model, seen = made(), []
    objective = Scripted(scores=[2.0, float("nan")], watch=lambda m: seen.append(copies(m)))
    with pytest.raises(
        Diverged, match=r"held-out loss.* not finite after step 4; the state of step 2 is kept"
    ):
        train(
            model,
            objective,
            QUICK.model_copy(update={"epochs": 9, "evaluate_every": 2}),
            state_of(model),
            seed=0,
        )
    assert same(copies(model), seen[0])


def test_weights_that_are_not_finite_have_no_best_score_however_good_it_looks():
    model = made()
    start, weights = copies(model), state_of(model)

    def spoil(model):
        with torch.no_grad():
            weights.parameters[3].view(-1)[2] = float("nan")

    with pytest.raises(Diverged, match=r"weights .* not finite after step 4"):
        train(model, Scripted(watch=spoil), QUICK, weights, seed=0)
    assert same(copies(model), start)


def test_the_progress_bar_ends_with_its_training_however_it_ends(monkeypatch):
    bars, make = [], loop.ProgressBar
    monkeypatch.setattr(loop, "ProgressBar", lambda *args: bars.append(make(*args)) or bars[-1])
    for faults in ({}, {2: float("nan")}):
        model = made()
        try:
            train(model, Scripted(faults=faults), QUICK, state_of(model), seed=0)
        except Diverged:
            assert faults
        assert not bars[-1].bar.live.is_started
    assert [bar.bar.tasks[0].completed for bar in bars] == [4, 1]


def language(bases):
    model = load_language_model(bases())
    objective = masked_lm(tiny.sentences(40), TOKENIZER, LanguageTrainingConfig(), 16, 0)
    return model, objective


def test_the_same_seed_gives_the_same_weights_bit_for_bit_and_another_does_not(bases):
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(results))  # what happened before does not matter
        model, objective = language(bases)
        train(model, objective, QUICK, state_of(model, with_head=False), seed=seed)
        results.append(copies(model))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_batches_of_a_task_are_drawn_whatever_the_lengths_of_their_examples(bases):
    texts = [" ".join(tiny.WORDS[: 1 + i % 30]) for i in range(320)]
    examples = Examples(texts, None, ["short" if i % 30 < 15 else "long" for i in range(320)])
    model = load_task_model(bases(), ("long", "short"))
    objective = supervised(
        CLASSIFICATION, examples, examples, ("long", "short"), TOKENIZER, 32, "accuracy"
    )
    labels = []

    def collate(batch, drawn):
        collated = objective.collate(batch, drawn)
        labels.append(collated["labels"].float().mean().item())
        return collated

    names = (
        "train",
        "metric",
        "greater_is_better",
        "digest",
        "loss",
        "loss_denominator",
        "validate",
    )
    watched = SimpleNamespace(collate=collate, **{name: getattr(objective, name) for name in names})
    training = TaskTrainingConfig(batch_size=8, max_steps=40, evaluate_every=100, precision="fp32")
    train(model, watched, training, state_of(model), seed=0)
    shares = torch.tensor(labels[:40])
    # Of 8 labels drawn without regard to length, a share of 0.5 is had with a standard deviation of
    # 0.18; batches of like length would be of one label each, with one of 0.5, and where these come
    # in turn, one goes with the next.
    assert 0.1 < shares.std() < 0.27
    assert torch.corrcoef(torch.stack([shares[1:], shares[:-1]]))[0, 1].abs() < 0.4


@pytest.mark.parametrize(
    ("precision", "pays", "bf16"),
    [("fp32", True, False), ("bf16", False, True), ("auto", True, True), ("auto", False, False)],
)
def test_precision_is_as_set_or_as_the_device_has_it(monkeypatch, precision, pays, bf16):
    monkeypatch.setattr(loop, "bf16_pays", lambda device: pays)
    model, objective = made(), Scripted()
    train(
        model, objective, QUICK.model_copy(update={"precision": precision}), state_of(model), seed=0
    )
    assert objective.autocast == {bf16}
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert 1e-4 < furthest(model, made()) < 1e-2


def test_bf16_trains_as_fp32_does_but_for_rounding():
    models = {}
    for precision in ("fp32", "bf16"):
        models[precision] = made()
        training = QUICK.model_copy(update={"precision": precision, "epochs": 2})
        train(models[precision], Scripted(), training, state_of(models[precision]), seed=0)
    moved = furthest(models["fp32"], made())
    assert 0 < furthest(models["fp32"], models["bf16"]) < moved * 2


def test_bf16_pays_is_told_by_the_device(monkeypatch):
    assert isinstance(bf16_pays(torch.device("cpu")), bool)
    for pays in (True, False):  # avx512_bf16 alone multiplies no faster than fp32 on Intel's
        has = {"amx_bf16": pays, "avx512_bf16": True, "cpu_name": "Intel(R) Xeon(R) Processor"}
        monkeypatch.setattr(torch.cpu, "get_capabilities", raising=False, value=lambda has=has: has)
        assert bf16_pays(torch.device("cpu")) is pays
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation, pays=pays: pays
        )
        assert bf16_pays(torch.device("cuda")) is pays
    for has in ({"avx512_bf16": True}, {"avx512_bf16": False}):  # but does on AMD's
        amd = {"amx_bf16": False, "cpu_name": "AMD EPYC", **has}
        monkeypatch.setattr(torch.cpu, "get_capabilities", raising=False, value=lambda amd=amd: amd)
        assert bf16_pays(torch.device("cpu")) is has["avx512_bf16"]
    monkeypatch.setattr(torch.cpu, "get_capabilities", raising=False, value=dict)
    assert bf16_pays(torch.device("cpu")) is False


@pytest.mark.parametrize("masked", [True, False])
def test_attention_beside_bf16_is_computed_in_fp32_on_processors(masked):
    query, key, value = torch.randn(3, 2, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    query.requires_grad_()
    mask = torch.ones(2, 1, 6, 6, dtype=torch.bool).tril() if masked else None
    attention = torch.nn.functional.scaled_dot_product_attention
    rounded = [part.bfloat16().float() for part in (query, key, value)]
    exact = attention(*rounded, attn_mask=mask)
    with autocast(torch.device("cpu"), True):
        found = attention(query.bfloat16(), key.bfloat16(), value=value.bfloat16(), attn_mask=mask)
        product = query @ key.mT
    assert found.dtype == product.dtype == torch.bfloat16
    assert torch.equal(found, exact.bfloat16())
    found.float().sum().backward()
    assert query.grad.isfinite().all()


def test_no_autocast_leaves_everything_in_fp32():
    with autocast(torch.device("cpu"), False):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize("shape", [(), (0,), (5,), (7, 3), (2, 3, 4)])
def test_the_penaltys_gradient_in_parts_is_that_of_the_whole_to_the_bit(monkeypatch, shape):
    monkeypatch.setattr(loop, "CHUNK", 4)
    drawn = torch.Generator().manual_seed(0)
    gradient, weight, start = (torch.randn(shape, generator=drawn) for _ in range(3))
    expected = gradient + 0.1 * torch.sign(weight - start)
    loop.add_sign_of_change(gradient, weight, start, 0.1)
    assert torch.equal(gradient, expected)
    wide = torch.randn(6, 8, generator=drawn)
    gradient, weight, start = (
        wide.mT.clone().mT[:, ::2],
        torch.randn(6, 4, generator=drawn),
        torch.zeros(6, 4),
    )
    expected = gradient + 0.1 * torch.sign(weight)
    loop.add_sign_of_change(gradient, weight, start, 0.1)
    assert torch.equal(gradient, expected)
