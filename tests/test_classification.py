"""Classification: texts and pairs become batches, answers keep their order, scores are the usual
ones."""

from dataclasses import replace
from functools import partial

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification

from deftx.config import TaskTrainingConfig, TaskVectorConfig
from deftx.data.examples import Examples
from deftx.errors import DeftxError
from deftx.models.heads import load_task_model
from deftx.tasks import base as supervised
from deftx.tasks import classification
from deftx.tasks.classification import CLASSIFICATION, METRICS, encode
from deftx.tasks.encoding import logits_of
from deftx.tasks.registry import settled

TOKENIZER = tiny.tokenizer()
LABELS = ("negative", "neutral", "positive")
TEXTS = tiny.sentences(20, seed=1)
SINGLE = Examples(TEXTS, None, [LABELS[i % 3] for i in range(20)])
PAIRS = Examples(["ba be", "", "bi"], ["bo bu", "da", ""], ["no", "yes", "no"])


def made(examples=SINGLE, valid=None, labels=LABELS, length=32, metric="macro_f1"):
    held_out = examples if valid is None else valid
    return supervised.supervised(
        CLASSIFICATION, examples, held_out, labels, TOKENIZER, length, metric
    )


evaluate, predict = (
    partial(supervised.evaluate, CLASSIFICATION),
    partial(supervised.predict, CLASSIFICATION),
)
label_names = CLASSIFICATION.label_names


@torch.no_grad()
def logits(model, encoded, batch_size=32):
    return torch.stack(logits_of(model.eval(), encoded, batch_size, classification.logits))


def scores(true, predicted):
    examples = Examples([""] * len(true), None, true)
    return supervised.scores(CLASSIFICATION, examples, [(each,) for each in predicted])


@pytest.fixture(scope="module")
def model(bases):
    return load_task_model(bases(), LABELS).eval()


def test_single_texts_become_their_tokens_and_label_numbers():
    encoded = encode(Examples(["ba be", ""], None, ["positive", "negative"]), TOKENIZER, 32, LABELS)
    assert [example["input_ids"] for example in encoded.inputs] == [[0, 5, 6, 2], [0, 2]]
    assert encoded.targets == [2, 0]


def test_pairs_are_read_together_and_either_may_be_empty():
    encoded = encode(PAIRS, TOKENIZER, 32, ("no", "yes"))
    assert [example["input_ids"] for example in encoded.inputs] == [
        [0, 5, 6, 2, 2, 8, 9, 2],
        [0, 2, 2, 10, 2],
        [0, 7, 2, 2, 2],
    ]
    assert encoded.targets == [0, 1, 0]


def test_long_inputs_are_cut_to_the_length_and_pairs_where_they_are_longest():
    long = " ".join(tiny.WORDS[:40])
    alone, pair = (
        encode(Examples([long], second), TOKENIZER, 10, labelled=False).inputs[0]
        for second in (None, ["ba"])
    )
    assert alone["input_ids"] == [0, *range(5, 13), 2]
    assert pair["input_ids"] == [0, *range(5, 10), 2, 2, 5, 2]


def test_a_batch_is_padded_to_its_longest_and_masks_what_is_padding():
    objective = made(Examples(["ba", "ba be bi"], None, ["neutral", "positive"]))
    batch = objective.collate(objective.train)
    assert batch["input_ids"].tolist() == [[0, 5, 2, 1, 1], [0, 5, 6, 7, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [1, 2]


def test_the_loss_is_the_mean_cross_entropy_and_equals_the_models_own(model):
    objective = made()
    batch = objective.collate(objective.train)
    loss = objective.loss(model, batch)
    torch.testing.assert_close(loss, model(**batch).loss)
    torch.testing.assert_close(loss, cross_entropy(logits(model, objective.valid), batch["labels"]))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_answers_keep_the_order_of_the_examples_however_they_are_batched(model, batch_size):
    encoded = encode(SINGLE, TOKENIZER, 32, labelled=False)
    assert encoded.targets == []
    with torch.no_grad():
        one_by_one = torch.cat(
            [model(**encoded.pad([example])).logits for example in encoded.inputs]
        )
    answers = logits(model, encoded, batch_size)
    assert answers.shape == (20, 3)
    assert answers.dtype == torch.float32
    torch.testing.assert_close(answers, one_by_one)


def test_batches_of_answers_go_by_length(model):
    encoded, padding = encode(SINGLE, TOKENIZER, 32, labelled=False), []

    def pad(examples):
        batch = encoded.pad(examples)
        padding.append(int((batch["attention_mask"] == 0).sum()))
        return batch

    logits(model, replace(encoded, pad=pad), 4)
    by_length, padding[:] = sum(padding), []
    for start in range(0, 20, 4):
        pad(encoded.inputs[start : start + 4])
    assert by_length < 0.5 * sum(padding)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_scores_are_those_counted_by_hand_and_by_scikit_learn(pairs):
    true, predicted = map(list, zip(*pairs, strict=True))
    made = scores(true, predicted)
    assert made.keys() == METRICS.keys()
    assert made["accuracy"] == pytest.approx(sum(t == p for t, p in pairs) / len(pairs))
    assert made["accuracy"] == pytest.approx(accuracy_score(true, predicted))
    f1 = []
    for label in {*true, *predicted}:
        hits = sum(t == p == label for t, p in pairs)
        f1.append(2 * hits / (true.count(label) + predicted.count(label)))
    assert made["macro_f1"] == pytest.approx(sum(f1) / len(f1))
    assert made["macro_f1"] == pytest.approx(f1_score(true, predicted, average="macro"))


def test_validation_and_evaluation_score_the_models_answers(model):
    objective = made()
    predicted = logits(model, objective.valid).argmax(-1).tolist()
    expected = scores(objective.valid.targets, predicted)
    assert objective.validate(model, 6) == expected
    assert evaluate(model, TOKENIZER, SINGLE, 32) == expected
    assert 0 < expected["accuracy"] < 1


def test_evaluation_takes_the_labels_in_the_order_of_the_model(bases):
    turned = load_task_model(bases(), LABELS[::-1]).eval()
    encoded = encode(SINGLE, TOKENIZER, 32, labelled=False)
    answers = [turned.config.id2label[i] for i in logits(turned, encoded).argmax(-1).tolist()]
    right = sum(answer == label for answer, label in zip(answers, SINGLE.labels, strict=True))
    assert evaluate(turned, TOKENIZER, SINGLE, 32)["accuracy"] == pytest.approx(right / 20)


def test_evaluation_is_without_dropout_also_for_a_model_in_training(model):
    expected = evaluate(model, TOKENIZER, SINGLE, 32)
    for _ in range(3):
        assert evaluate(model.train(), TOKENIZER, SINGLE, 32) == expected


def test_evaluation_knows_more_than_ten_labels_of_a_saved_model(bases, tmp_path):
    labels = [f"label {i:02}" for i in range(12)]
    load_task_model(bases(), labels).save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    answers = predict(model, TOKENIZER, SINGLE, 32)
    assert {label for label, _ in answers} - set(labels[:2])
    right = Examples(TEXTS, None, [label for label, _ in answers])
    assert evaluate(model, TOKENIZER, right, 32)["accuracy"] == 1


def test_predictions_are_the_most_probable_labels(model):
    probabilities = logits(model, encode(SINGLE, TOKENIZER, 32, labelled=False)).softmax(-1)
    for row, (label, probability) in zip(
        probabilities, predict(model, TOKENIZER, SINGLE, 32), strict=True
    ):
        assert label == LABELS[row.argmax()]
        assert probability == pytest.approx(row.max().item())


def test_labels_are_sorted_names():
    assert label_names(SINGLE) == LABELS
    assert label_names(Examples(["a"] * 3, None, ["10", "9", "10"])) == ("10", "9")


@pytest.mark.parametrize("labels", [["positive"] * 3, [], None])
def test_fewer_than_two_labels_are_an_error(labels):
    with pytest.raises(DeftxError, match=r"has \d label\(s\).*needs at least two"):
        label_names(Examples(["a"] * len(labels or []), None, labels))


def test_a_label_that_training_does_not_have_is_an_error_that_names_it(model):
    unseen = Examples(["ba", "be"], None, ["positive", "mixed"])
    message = (
        "label 'mixed' is not among the labels of the training data: negative, neutral, positive"
    )
    with pytest.raises(DeftxError, match=message):
        made(valid=unseen)
    with pytest.raises(DeftxError, match=message):
        evaluate(model, TOKENIZER, unseen, 32)


def test_examples_without_labels_are_an_error_where_labels_are_needed(model):
    bare = Examples(["ba", "be"])
    for wrong in (
        lambda: made(bare),
        lambda: made(valid=bare),
        lambda: evaluate(model, TOKENIZER, bare, 32),
    ):
        with pytest.raises(DeftxError, match="the examples have no labels"):
            wrong()


def test_a_tokenizer_that_cannot_pad_is_an_error():
    bare = tiny.tokenizer()
    bare.pad_token = None
    with pytest.raises(DeftxError, match="no padding token: give an encoder such as XLM-R"):
        encode(SINGLE, bare, 32, LABELS)


def test_no_examples_are_an_error(model):
    empty = Examples([], None, [])
    for wrong in (lambda: made(valid=empty), lambda: evaluate(model, TOKENIZER, empty, 32)):
        with pytest.raises(DeftxError, match="there are no examples"):
            wrong()


def test_an_unknown_metric_is_an_error_that_lists_the_known_ones():
    said = (
        r"unknown metric of classification 'macro-f1' .did you mean 'macro_f1'.*accuracy, macro_f1"
    )
    with pytest.raises(DeftxError, match=said):
        settled(TaskVectorConfig(training=TaskTrainingConfig(metric="macro-f1")))


def test_equal_data_have_equal_digests_and_others_do_not():
    assert made().digest == made().digest
    shorter = Examples(TEXTS[:-1], None, SINGLE.labels[:-1])
    others = [made(shorter), made(valid=shorter), made(labels=LABELS[::-1]), made(length=4)]
    assert len({made().digest, *(other.digest for other in others)}) == 5
