"""SpIEL: entries are chosen while they are trained, as in a dense loop that keeps everything."""

from itertools import pairwise

import pytest
import tiny
import torch
from fit_examples import LANGUAGE, TASK, TEXT, TRAIN, VALID, language_model, same
from torch import nn

from deftx.config import LanguageVectorConfig, changed
from deftx.core.denoise import denoise
from deftx.core.parameters import parameter_groups
from deftx.core.reselection import RESELECTIONS
from deftx.core.select import SPLITS
from deftx.errors import DeftxError
from deftx.fit import fit_language, fit_task
from deftx.objectives.masked_lm import MaskedLM
from deftx.training.spiel import ReselectedTuning, reselected_tuning

INPUTS = torch.tensor([[0, 7, 8, 9, 2], [0, 30, 31, 32, 2], [0, 9, 30, 8, 2], [0, 32, 7, 7, 2]])
LABELS = torch.where(torch.rand(INPUTS.shape, generator=torch.manual_seed(0)) < 0.6, INPUTS, -100)
SOME_IDS, ALL_IDS = INPUTS.unique(), torch.arange(75)
STEPS, EVERY, WINDOW, SHARE, RATE, CLIP, RANK = 14, 4, 3, 0.5, 0.02, 0.5, 3
BETAS, EPSILON = (0.9, 0.999), 1e-8


def settings_of(method, **changes):
    """Settings under which much is replaced in few steps."""
    schedule = {"every": EVERY, "window": WINDOW, "share": SHARE}
    plain = LanguageVectorConfig(method=method, k="10%", rank=RANK)
    return changed(plain, {"reselection": schedule, **changes})


def made():
    """A model whose output embeddings are not its input embeddings, as they are in a fit."""
    torch.manual_seed(0)
    model = tiny.xlmr().eval()
    decoder = model.get_output_embeddings()
    decoder.weight = nn.Parameter(decoder.weight.detach().clone(), requires_grad=False)
    return model


def batches_of(step, count):
    """The rows of each batch of a step."""
    return [[(step + number) % 4, (step + 2 * number + 1) % 4] for number in range(count)]


def loss_of(model, rows):
    return model(input_ids=INPUTS[rows], labels=LABELS[rows]).loss


class Watch:
    """What a training was like after each step."""

    def __init__(self):
        self.positions, self.values = [], []


def train(model, settings, ids=SOME_IDS, *, accumulate=1, steps=STEPS):
    """Ours -> the vector, and what was seen."""
    watch = Watch()
    with reselected_tuning(model, parameter_groups(model), ids, settings, steps) as tuning:
        watch.first = tuning.positions.clone()
        watch.parts = tuning.parts
        optimizer = torch.optim.AdamW([tuning.values], RATE, weight_decay=0.0)
        for step in range(steps):
            tuning.before_step(step)
            for rows in batches_of(step, accumulate):
                loss_of(model, rows).backward()
            norm = nn.utils.clip_grad_norm_([tuning.values], CLIP)
            optimizer.step()
            tuning.after_step(step + 1, optimizer, (CLIP / (norm + 1e-6)).clamp(max=1.0))
            optimizer.zero_grad()
            watch.positions.append(tuning.positions.clone())
            watch.values.append(tuning.values.detach().clone())
        watch.moments = optimizer.state[tuning.values]
        vector = tuning.vector()
    return vector, watch


def largest(strengths, count, among):
    """The `count` of the numbers `among` with the largest strengths, the first ones on ties."""
    order = strengths[among].argsort(stable=True, descending=True)
    return among[order[:count]]


class Dense:
    """The reference: dense weights, gradients and moments of all parts, laid end to end."""

    def __init__(self, model, settings, parts, first):
        self.model, self.settings = model, settings
        self.names = [part.name for part in parts]
        self.weights = [parameter_groups(model).trainable[name] for name in self.names]
        self.rows = [None if part.rows is None else part.rows.ids for part in parts]
        self.sizes = [part.target.numel() for part in parts]
        self.shapes = [part.target.shape for part in parts]
        self.start = self.flat(self.weights)
        self.theta = self.start.clone()
        self.mean, self.square = torch.zeros_like(self.theta), torch.zeros_like(self.theta)
        self.is_trained = torch.zeros(len(self.theta), dtype=torch.bool)
        self.is_trained[first] = True
        bounds = torch.tensor([0, *self.sizes]).cumsum(0).tolist()
        self.spans = list(pairwise(bounds))
        groups = {}
        for number, (name, (begin, end)) in enumerate(zip(self.names, self.spans, strict=True)):
            is_matrix = len(self.shapes[number]) == 2 and min(self.shapes[number]) > 1
            if is_matrix or settings.method != "spiel-ma":
                group = groups.setdefault(SPLITS[settings.split](name), [])
                group.append(torch.arange(begin, end))
        self.groups = [torch.cat(group) for group in groups.values()]
        self.maxima = [
            [torch.zeros(size) for size in shape] if len(shape) == 2 and min(shape) > 1 else None
            for shape in self.shapes
        ]

    def flat(self, tensors):
        parts = []
        for tensor, rows in zip(tensors, self.rows, strict=True):
            parts.append((tensor if rows is None else tensor[rows]).detach().reshape(-1))
        return torch.cat(parts).clone()

    def by_name(self, flat):
        parts = flat.split(self.sizes)
        return {
            name: part.view(shape)
            for name, part, shape in zip(self.names, parts, self.shapes, strict=True)
        }

    def denoised(self, flat):
        if self.settings.method != "spiel-deftx":
            return flat
        tensors = denoise(self.by_name(flat), RANK, self.settings.keep)
        return torch.cat([tensor.reshape(-1) for tensor in tensors.values()])

    def gradient(self, rows):
        self.model.zero_grad()
        loss_of(self.model, rows).backward()
        return self.flat([weight.grad for weight in self.weights])

    def put(self):
        with torch.no_grad():
            for weight, rows, part in zip(
                self.weights, self.rows, self.by_name(self.theta).values(), strict=True
            ):
                if rows is None:
                    weight.copy_(part)
                else:
                    weight[rows] = part

    def run(self, accumulate, steps):
        """-> after each step what is trained, and its values."""
        seen = []
        for step in range(steps):
            gradients = [self.gradient(rows) for rows in batches_of(step, accumulate)]
            whole = sum(gradients)
            if step % EVERY == 0:
                self.found = self.denoised(gradients[0]).abs()
                self.candidates = [
                    largest(self.found, int(self.is_trained[group].sum()), group)
                    for group in self.groups
                ]
                self.sum, self.sum_of_squares = torch.zeros_like(whole), torch.zeros_like(whole)
            own = whole * self.is_trained
            clipping = (CLIP / (own.norm() + 1e-6)).clamp(max=1.0)
            if step % EVERY < WINDOW:
                self.sum += whole * clipping
                self.sum_of_squares += (whole * clipping).square()
            self.adam(own * clipping, step + 1)
            self.update_maxima(own * clipping)
            self.reselect(step + 1, steps)
            self.put()
            seen.append((self.is_trained.nonzero().view(-1), self.theta[self.is_trained]))
        return seen

    def adam(self, gradient, t):
        trained = self.is_trained
        self.mean[trained] += (1 - BETAS[0]) * (gradient - self.mean)[trained]
        self.square[trained] += (1 - BETAS[1]) * (gradient.square() - self.square)[trained]
        mean = self.mean / (1 - BETAS[0] ** t)
        root = (self.square / (1 - BETAS[1] ** t)).sqrt() + EPSILON
        self.theta[trained] -= (RATE * mean / root)[trained]

    def update_maxima(self, gradient):
        self.estimates, self.least = torch.zeros_like(gradient), torch.zeros_like(gradient)
        for number, (begin, end) in enumerate(self.spans):
            if self.maxima[number] is None:
                continue
            rows, columns = self.maxima[number]
            bound = torch.minimum(rows.unsqueeze(1), columns)
            trained = self.is_trained[begin:end].view(self.shapes[number])
            sums = (bound + gradient[begin:end].view(bound.shape).square()) * trained
            rows = torch.maximum(rows, sums.amax(dim=1))
            columns = torch.maximum(columns, sums.amax(dim=0))
            self.maxima[number] = [rows, columns]
            self.estimates[begin:end] = torch.outer(rows.sqrt(), columns.sqrt()).view(-1)
            self.least[begin:end] = torch.minimum(rows.unsqueeze(1), columns).view(-1)

    def reselect(self, done, steps):
        if done < WINDOW or (done - WINDOW) % EVERY or done == steps:
            return
        share = 1.0 if done == WINDOW else SHARE * (1 - done / steps)
        movement = self.denoised((self.theta - self.start) * self.is_trained).abs()
        for number, group in enumerate(self.groups):
            trained = group[self.is_trained[group]]
            count = int(share * len(trained))
            kept = largest(movement, len(trained) - count, trained)
            if self.settings.method == "spiel-ma":
                scores = self.estimates
                eligible = group[~self.is_trained[group]]
                mean, square = torch.zeros_like(scores), self.least / done
            else:
                scores = self.sum.abs()
                eligible = self.candidates[number].sort().values
                eligible = eligible[self.found[eligible] > 0]
                mean, square = self.sum / WINDOW, self.sum_of_squares / WINDOW
            eligible = eligible[~torch.isin(eligible, kept) & (scores[eligible] > 0)]
            grown = largest(scores, count, eligible)
            leaving = trained[~torch.isin(trained, torch.cat([kept, grown]))]
            new = grown[~torch.isin(grown, trained)]
            leaving = leaving[
                ~torch.isin(leaving, largest(movement, len(leaving) - len(new), leaving))
            ]
            assert len(leaving) == len(new)
            self.is_trained[leaving] = False
            self.theta[leaving] = self.start[leaving]
            self.is_trained[new] = True
            self.mean[new] = mean[new] * (1 - BETAS[0] ** done)
            self.square[new] = square[new] * (1 - BETAS[1] ** done)


@pytest.mark.parametrize("ids", [SOME_IDS, ALL_IDS], ids=["some rows", "all rows"])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("method", RESELECTIONS)
def test_entries_are_chosen_and_trained_as_in_a_dense_loop(method, split, ids):
    settings = settings_of(method, split=split)
    _, watch = train(made(), settings, ids, accumulate=2)
    reference = Dense(made(), settings, watch.parts, watch.first)
    expected = reference.run(accumulate=2, steps=STEPS)
    moves = 0
    before = watch.first
    for step, (positions, values) in enumerate(expected):
        assert torch.equal(watch.positions[step], positions), step
        # within a 400th of a step: small gradients are divided by a root near epsilon
        torch.testing.assert_close(watch.values[step], values, rtol=1e-4, atol=RATE / 400)
        moves += not torch.equal(positions, before)
        before = positions
    assert moves == 3  # after steps 3, 7 and 11
    torch.testing.assert_close(
        watch.moments["exp_avg_sq"], reference.square[expected[-1][0]], rtol=1e-3, atol=1e-9
    )


@pytest.mark.parametrize("method", RESELECTIONS)
@pytest.mark.parametrize("k", [1, 37, "10%", "60%", "100%"])
def test_exactly_k_entries_move_and_nothing_else(method, k):
    model = made()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    vector, watch = train(model, settings_of(method, k=k), steps=9)
    groups = parameter_groups(model)
    size = groups.trainable_size
    assert vector.k == (k if isinstance(k, int) else round(float(k[:-1]) / 100 * size))
    assert len({len(positions) for positions in watch.positions}) == 1
    inside = {id(weight): name for name, weight in groups.trainable.items()}
    for name, weight in model.named_parameters():
        moved = weight.detach() - before[name]
        if id(weight) in inside:
            torch.testing.assert_close(moved, vector[inside[id(weight)]].to_dense())
        else:
            assert not moved.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropped_entries_are_what_they_were_to_the_last_bit(dtype):
    """In half precision the trained values are kept in float32 all the same."""
    model = made().to(dtype)
    before = {n: w.detach().clone() for n, w in parameter_groups(model).trainable.items()}
    vector, watch = train(model, settings_of("spiel-ag"))
    assert not torch.equal(watch.first, watch.positions[-1])
    assert watch.values[-1].dtype == watch.moments["exp_avg"].dtype == torch.float32
    for name, weight in parameter_groups(model).trainable.items():
        is_free = torch.ones(weight.numel(), dtype=torch.bool)
        is_free[vector[name].indices] = False
        assert torch.equal(weight.detach().view(-1)[is_free], before[name].view(-1)[is_free])


def test_rows_of_pieces_that_the_data_lack_get_no_entries():
    vector, _ = train(made(), settings_of("spiel-ag", k="30%"))
    embeddings = vector["embeddings.word_embeddings.weight"]
    assert set((embeddings.indices // 16).tolist()) <= set(SOME_IDS.tolist())


def test_a_period_longer_than_the_training_means_one_choice():
    settings = settings_of("spiel-ag", reselection={"every": 1000, "window": 2})
    _, watch = train(made(), settings)
    assert torch.equal(watch.positions[0], watch.first)
    assert not torch.equal(watch.positions[1], watch.first)
    assert all(torch.equal(positions, watch.positions[1]) for positions in watch.positions[1:])


def test_the_share_that_is_replaced_falls_and_nothing_is_replaced_at_the_end():
    settings = settings_of("spiel-ma", reselection={"every": 2, "window": 2, "share": 1.0})
    _, watch = train(made(), settings, steps=12)
    replaced = [
        len(after) - int(torch.isin(after, before).sum())
        for before, after in zip(watch.positions[1::2], watch.positions[3::2], strict=False)
    ]
    assert replaced == sorted(replaced, reverse=True)
    assert replaced[0] > replaced[-2] > 0
    assert replaced[-1] == 0


def test_there_is_one_dense_gradient_at_a_time_and_moments_of_k_values(monkeypatch):
    model, gather, counts = made(), ReselectedTuning.gather, []

    def counted(self, target, number):
        counts.append(sum(part.target.grad is not None for part in self.parts))
        gather(self, target, number)

    monkeypatch.setattr(ReselectedTuning, "gather", counted)
    vector, watch = train(model, settings_of("spiel-ag"))
    assert set(counts) == {1}
    assert watch.moments["exp_avg"].shape == watch.moments["exp_avg_sq"].shape == (vector.k,)


def test_an_earlier_state_is_put_back_with_its_entries():
    model = made()
    settings = settings_of("spiel-ag")
    groups = parameter_groups(model)
    with reselected_tuning(model, groups, SOME_IDS, settings, STEPS) as tuning:
        optimizer = torch.optim.AdamW([tuning.values], RATE, weight_decay=0.0)
        for step in range(STEPS):
            tuning.before_step(step)
            loss_of(model, [0, 1]).backward()
            optimizer.step()
            tuning.after_step(step + 1, optimizer, torch.tensor(1.0))
            optimizer.zero_grad()
            if step == 4:
                state = tuning.values.detach().clone(), tuning.positions.clone()
                vector = tuning.vector()
                weights = [weight.detach().clone() for weight in groups.head.values()]
                loss = loss_of(model, [0, 1])
        assert not torch.equal(tuning.positions, state[1])
        with torch.no_grad():
            tuning.values.copy_(state[0])
            tuning.positions.copy_(state[1])
        tuning.restore()
        assert same(tuning.vector(), vector)
        assert torch.equal(loss_of(model, [0, 1]), loss)
        assert all(map(torch.equal, groups.head.values(), weights))


FIT = {"method": "spiel-ag", "reselection": {"every": 4, "window": 2}}
LONGER = {"training": {"max_steps": 12, "evaluate_every": 5, "epochs": 12}}


@pytest.mark.parametrize("method", RESELECTIONS)
def test_languages_and_tasks_are_learnt_in_one_training(bases, method):
    language = changed(changed(LANGUAGE, FIT | {"method": method}), LONGER)
    vector = fit_language(bases(), TEXT, language)
    assert list(vector.provenance.log) == ["phase2"]
    assert vector.provenance.reselection == {"every": 4, "window": 2, "share": 0.2}
    task = changed(changed(TASK, FIT | {"method": method}), LONGER)
    of_task = fit_task(bases(), TRAIN, VALID, task, source=vector)
    assert of_task.k == round(0.05 * sum(part.numel() for part in of_task.to_dense().values()))
    assert of_task.head is not None


def test_the_best_evaluated_step_is_left_with_its_entries(bases, monkeypatch):
    losses = iter([5.0, 4.0, 1.0, 3.0, 2.0])  # before, and after steps 3, 6, 9 and 12
    seen = []

    def validate(self, model, batch_size):
        seen.append({n: w.detach().clone() for n, w in parameter_groups(model).trainable.items()})
        return {"loss": next(losses)}

    monkeypatch.setattr(MaskedLM, "validate", validate)
    often = {"max_steps": 12, "evaluate_every": 3, "epochs": 12}
    settings = changed(LANGUAGE, FIT | {"k": "30%", "training": often})
    vector = fit_language(bases(), TEXT, settings)
    assert vector.provenance.log["phase2"].best_step == 6
    start = language_model(bases())[0]
    for name, weight in parameter_groups(start).trainable.items():
        if name != "embeddings.word_embeddings.weight":  # written at the end
            torch.testing.assert_close(vector[name].to_dense(), seen[2][name] - weight.detach())
            assert torch.equal(vector[name].to_dense() != 0, seen[2][name] != weight)


@pytest.mark.parametrize("shape", ["deberta", "llama", "qwen", "mt5", "bart"])
def test_kinds_of_bases_learn_languages_so(bases, shape):
    """Embeddings of their own and tied ones, encoder-decoders; each layer having its part."""
    settings = changed(changed(LANGUAGE, FIT | {"split": "layer"}), LONGER)
    vector = fit_language(bases(shape), TEXT, settings)
    assert vector.k == round(0.05 * sum(part.numel() for part in vector.to_dense().values()))
    assert any(part.any() for part in vector.to_dense().values())


@pytest.mark.parametrize("method", RESELECTIONS)
def test_a_task_without_entries_learns_its_head(bases, method):
    task = changed(changed(TASK, FIT | {"method": method, "k": 0}), LONGER)
    vector = fit_task(bases(), TRAIN, VALID, task)
    assert vector.k == 0
    assert vector.head is not None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"phase2": False}, "method spiel-ag has no phase 1, so that phase2 = false"),
        ({"rank": "split-half"}, "rank split-half needs phase 1, which method spiel-ag has not"),
        ({"training": {"average": 2}}, "method spiel-ag with training.average = 2"),
        (
            {"reselection": {"every": 9, "window": 4}},
            "reselection.window = 4 steps, but the training has 4: set it below",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(bases, wrong, message):
    settings = changed(changed(LANGUAGE, FIT), wrong)
    with pytest.raises(DeftxError) as caught:
        fit_language(bases(), TEXT, settings)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_window_longer_than_the_period_is_refused():
    with pytest.raises(
        DeftxError, match=r"reselection\.window = 7: is more than reselection\.every"
    ):
        changed(LANGUAGE, {"reselection": {"every": 3, "window": 7}})


def test_several_processes_are_refused(bases, monkeypatch):
    monkeypatch.setattr("deftx.training.distributed._world", [2, 0])
    with pytest.raises(DeftxError, match="method spiel-ag is for one process"):
        fit_language(bases(), TEXT, changed(changed(LANGUAGE, FIT), LONGER))


def test_other_methods_do_not_record_when_entries_are_replaced():
    assert "reselection" not in LanguageVectorConfig().deciding()
    assert "reselection" in LanguageVectorConfig(method="spiel-ma").deciding()
