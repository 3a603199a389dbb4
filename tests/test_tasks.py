"""Every kind of task, from its vector to a model that was saved; then what each does with its own
kind of data."""

import json
import math
from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from task_examples import EXAMPLES, TAGS, TEXTS, WORDS
from tokenizers import pre_tokenizers
from transformers import AutoModelForMultipleChoice

from deftx.config import (
    LanguageTrainingConfig,
    LanguageVectorConfig,
    TaskTrainingConfig,
    TaskVectorConfig,
)
from deftx.core.apply import apply_temporarily
from deftx.core.parameters import parameter_groups
from deftx.data.examples import Columns, Examples
from deftx.errors import DeftxError
from deftx.fit import fit_language, fit_task
from deftx.models.compose import compose, load_base_with_head
from deftx.models.heads import load_composed, load_task_model, recorded_task
from deftx.models.saving import save_model
from deftx.models.tokenizers import load_tokenizer
from deftx.objectives.base import IGNORED
from deftx.storage.vector_files import load, save
from deftx.tasks.base import evaluate, names_of, predict, supervised
from deftx.tasks.encoding import inputs_of
from deftx.tasks.generation import chrf, exact_match
from deftx.tasks.registry import TASKS, read_examples, settled
from deftx.tasks.regression import pearson, spearman
from deftx.tasks.tagging import span_f1, spans

SHORT = {"learning_rate": 1e-3, "batch_size": 4, "length": 24, "max_steps": 2, "evaluate_every": 1}
TOKENIZER = tiny.tokenizer()


@pytest.fixture(scope="module")
def language(bases):
    """The language vector of a shape's base, learnt once."""
    learnt = {}

    def of(shape):
        if shape not in learnt:
            settings = LanguageVectorConfig(
                k="5%", training=LanguageTrainingConfig(**SHORT, min_steps=0)
            )
            learnt[shape] = fit_language(bases(shape), tiny.sentences(30), settings)
        return learnt[shape]

    return of


def as_labels(task, answers):
    """Predictions, as if they were what the data says."""
    return [[(0, first)] if task == "question-answering" else first for first, *_ in answers]


CASES = [
    (task, shape) for shape in ("xlmr", "modernbert") for task in TASKS if task != "generation"
]
CASES += [
    (task, shape)
    for shape in tiny.DECODERS
    for task in ("classification", "tagging", "regression", "generation")
]
CASES += [
    (task, shape)
    for shape in ("mt5", "bart")
    for task in ("classification", "regression", "question-answering", "generation")
]


@pytest.fixture(autouse=True)
def _poolers(request):
    """transformers 5.6 makes XLM-R's model for multiple choice without the pooler that it reads."""
    parameters = getattr(request.node, "callspec", None)
    chosen = {p for p in parameters.params.values() if isinstance(p, str)} if parameters else set()
    named = request.node.name.startswith("test_options_that_a_question")
    if (
        named or ("multiple-choice" in chosen and chosen.isdisjoint({"modernbert"}))
    ) and not _xlmr_has_a_pooler():
        pytest.skip(
            "this release of transformers has a model for multiple choice without XLM-R's pooler"
        )


def _xlmr_has_a_pooler():
    return AutoModelForMultipleChoice.from_config(tiny.xlmr().config).base_model.pooler is not None


@pytest.mark.parametrize(("task", "shape"), CASES)
def test_a_task_is_learnt_composed_scored_saved_loaded_and_undone(
    bases, language, tmp_path, task, shape
):
    base, phi, examples, kind = bases(shape), language(shape), EXAMPLES[task], TASKS[task]
    settings = TaskVectorConfig(task=task, k="5%", training=TaskTrainingConfig(**SHORT))
    save(fit_task(base, examples, examples, settings, source=phi), tmp_path / "task")
    vector = load(tmp_path / "task")
    model, tokenizer = load_base_with_head(base, vector, [phi]), load_tokenizer(base)
    body, before = (
        parameter_groups(model).trainable,
        {name: weight.detach().clone() for name, weight in model.named_parameters()},
    )
    assert vector.provenance.task == task
    assert vector.provenance.training.metric == next(iter(kind.metrics))
    assert vector.k == round(0.05 * sum(weight.numel() for weight in body.values()))
    assert vector.tensors.keys() <= body.keys()

    composed = compose(base, vector, phi)
    answers, scores = (do(kind, composed, tokenizer, examples, 24) for do in (predict, evaluate))
    assert [len(answer) for answer in answers] == [len(kind.output_fields)] * len(examples)
    assert scores.keys() == kind.metrics.keys()
    as_predicted = Examples(
        examples.texts, examples.pairs, as_labels(task, answers), examples.parts
    )
    for name, score in evaluate(kind, composed, tokenizer, as_predicted, 24).items():
        nothing_found = name in ("span_f1", "chrf") and score == 0
        assert nothing_found or score == pytest.approx(0 if name == "mse" else 1, abs=1e-6)

    with apply_temporarily(model, phi, vector):
        assert all(map(torch.equal, model.parameters(), composed.parameters()))
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    save_model(composed, tokenizer, tmp_path / "model")
    assert recorded_task(tmp_path / "model") is kind
    assert predict(kind, load_composed(tmp_path / "model"), tokenizer, examples, 24) == answers


def with_a_rule(task, seed):
    """Examples whose labels can be told from the texts: by a word's last vowel, its place, or how
    many there are."""
    texts = tiny.sentences(120, seed)
    words = [text.split() for text in texts]
    front = [[word[-1] in "ei" for word in row] for row in words]
    pairs = [
        [row[0], next(w for w in row if (w[-1] in "ei") != (row[0][-1] in "ei"))] for row in words
    ]
    return {
        "tagging": Examples(
            texts, labels=[["F" if f else "B" for f in row] for row in front], parts=words
        ),
        "ner": Examples(
            texts,
            labels=[["B-X" if w[-1] == "e" else "O" for w in row] for row in words],
            parts=words,
        ),
        "question-answering": Examples(
            ["ba"] * 120, texts, [[(len(row[0]) + 1, row[1])] for row in words]
        ),
        "multiple-choice": Examples(
            texts, labels=[int(row[1][-1] in "ei") for row in pairs], parts=pairs
        ),
        "regression": Examples(texts, labels=[len(row) / 5 for row in words]),
        "parsing": Examples(texts, labels=[_tree(row) for row in front], parts=words),
    }[task]


def _tree(front):
    """The first word with a front vowel is the root, and all others hang on it."""
    root = front.index(True) if True in front else 0
    relations = ["nsubj" if is_front else "obj" for is_front in front]
    arcs = [(root + 1, relation) for relation in relations]
    arcs[root] = (0, "root")
    return arcs


@pytest.mark.parametrize(
    ("task", "metric"),
    [
        ("tagging", "macro_f1"),
        ("ner", "span_f1"),
        ("question-answering", "f1"),
        ("multiple-choice", "accuracy"),
        ("regression", "pearson"),
        ("parsing", "las"),
    ],
)
def test_a_task_with_a_rule_is_learnt_and_holds_for_other_texts(bases, task, metric):
    training = TaskTrainingConfig(
        learning_rate=1e-2, batch_size=16, length=32, epochs=50, max_steps=160, evaluate_every=40
    )
    settings = TaskVectorConfig(task=task, k="50%", method="lt-sft", training=training)
    vector = fit_task(bases(), with_a_rule(task, 1), with_a_rule(task, 2), settings)
    model, tokenizer, unseen = (
        compose(bases(), vector),
        load_tokenizer(bases()),
        with_a_rule(task, 3),
    )
    learnt = evaluate(TASKS[task], model, tokenizer, unseen, 32)[metric]
    start = replace(vector, tensors={})
    before = evaluate(TASKS[task], compose(bases(), start), tokenizer, unseen, 32)[metric]
    assert learnt > 0.9
    assert before < 0.8


COLUMNS = {  # what is said of examples -> the task, the column, and what is in it
    r"the examples have no parts, which this task reads: give `parts`, one for each text": [
        ("multiple-choice", "parts", None)
    ],
    r"the examples have no pairs, which this task reads: give `pairs`, one for each text": [
        ("question-answering", "pairs", None)
    ],
    r"example 2 has no parts: give it at least one": [
        ("multiple-choice", "parts", [["a"], *[[]] * 11])
    ],
    r"the examples have pairs, which this task does not read: leave them out": [
        ("generation", "pairs", TEXTS),
        ("tagging", "pairs", TEXTS),
        ("multiple-choice", "pairs", TEXTS),
    ],
    r"the examples have parts, which this task does not read: leave them out": [
        ("classification", "parts", WORDS),
        ("question-answering", "parts", WORDS),
    ],
    r"example 1 has \d+ words and \d+ tags: give every word one": [
        ("tagging", "labels", [tags[1:] for tags in TAGS]),
        ("tagging", "labels", [[*tags, "BACK"] for tags in TAGS]),
        ("ner", "parts", [words[1:] for words in WORDS]),
    ],
}


@pytest.mark.parametrize(
    ("says", "task", "column", "given"),
    [(says, *case) for says, cases in COLUMNS.items() for case in cases],
)
def test_columns_that_do_not_fit_a_task_are_one_line_before_any_training(
    bases, says, task, column, given
):
    examples = replace(EXAMPLES[task], **{column: given})
    with pytest.raises(DeftxError, match=f"^{says}$"):
        fit_task(
            bases("qwen" if task == "generation" else "xlmr"),
            examples,
            examples,
            TaskVectorConfig(task=task),
        )


def test_words_to_be_tagged_are_what_stands_between_spaces_unless_they_are_given():
    encoded = [
        TASKS["tagging"].encode(examples, TOKENIZER, 24, ("BACK", "FRONT"), True)
        for examples in (
            EXAMPLES["tagging"],
            replace(EXAMPLES["tagging"], parts=None),
            replace(EXAMPLES["tagging"], texts=["what is not read"] * len(TEXTS)),
        )
    ]
    first, *others = [(each.inputs, each.targets, each.word_ids, each.examples) for each in encoded]
    assert others == [first, first]
    spelt = TASKS["tagging"].map_texts(Examples(["ba  be"]), str.upper)
    assert spelt == Examples(["BA BE"], parts=[["BA", "BE"]])


def test_a_task_that_transformers_does_not_know_for_a_base_is_an_error_of_one_line(bases):
    examples = EXAMPLES["multiple-choice"]
    with pytest.raises(
        DeftxError,
        match=r"cannot load the model .*no AutoModelForMultipleChoice of this kind of base",
    ):
        fit_task(bases("qwen"), examples, examples, TaskVectorConfig(task="multiple-choice"))


@pytest.mark.parametrize(
    ("shape", "task"),
    [("mt5", "tagging"), ("t5", "ner"), ("bart", "tagging"), ("mbart", "multiple-choice")],
)
def test_a_task_that_cannot_be_had_on_an_encoder_decoder_is_an_error_of_one_line(
    bases, shape, task
):
    examples = EXAMPLES[task]
    with pytest.raises(
        DeftxError,
        match=r"leaves out the decoder of .*: give an encoder|cannot load .* of this kind of base",
    ) as told:
        fit_task(bases(shape), examples, examples, TaskVectorConfig(task=task))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("task", [task for task in TASKS if task not in ("generation", "parsing")])
def test_the_loss_is_the_one_of_the_model_itself(bases, task):
    kind, examples = TASKS[task], EXAMPLES[task].at(range(0, 12, 2))
    names = names_of(kind, examples)
    model = load_task_model(bases(), names, task=kind).eval()
    objective = supervised(kind, examples, examples, names, TOKENIZER, 24, "")
    batch = objective.collate(
        objective.train[:1]
    )  # without padding, which transformers takes for possible answers
    labels = {"labels": batch["labels"]}
    if task == "question-answering":
        labels = {"start_positions": batch["labels"][:, 0], "end_positions": batch["labels"][:, 1]}
    torch.testing.assert_close(
        objective.loss(model, batch), model(**inputs_of(batch), **labels).loss
    )


def test_a_task_or_metric_that_is_not_known_is_an_error_that_lists_the_known_ones():
    with pytest.raises(
        DeftxError,
        match=r"unknown task 'taging' .did you mean 'tagging'.*classification, .*regression",
    ):
        settled(TaskVectorConfig(task="taging"))
    with pytest.raises(
        DeftxError, match=r"unknown metric of regression 'f1'.*mse, pearson, spearman"
    ):
        settled(TaskVectorConfig(task="regression", training=TaskTrainingConfig(metric="f1")))


# --- tagging ---


def written(folder, name, content):
    (folder / name).write_text(content, encoding="utf-8")
    return folder / name


CONLLU = "# text = ba be\n1-2\tbabe\t_\t_\n".replace("\t_\t_", "\t_" * 8)
CONLLU += "".join(
    f"{i}\t{word}\t_\t{tag}{chr(9)}" + "\t".join("_" * 6) + "\n"
    for i, word, tag in [(1, "ba", "X"), (2, "be", "Y")]
)
FILES = {
    "two columns": ("a.tsv", "ba\tX\nbe\tY\n\n\n#\tZ\n"),
    "more columns": ("a.tsv", "ba\tlemma\tX\nbe\tlemma\tY\n\n#\tlemma\tZ\n"),
    "CoNLL-U": (
        "a.conllu",
        CONLLU + "2.1\t" + "\t".join("_" * 9) + "\n\n1\t#\t_\tZ\t" + "\t".join("_" * 6) + "\n",
    ),
    "JSON lines": (
        "a.jsonl",
        '{"words": ["ba", "be"], "tags": ["X", "Y"]}\n{"words": ["#"], "tags": ["Z"]}\n',
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_words_and_tags_are_read_from_files_of_every_kind(tmp_path, kind):
    found = read_examples(written(tmp_path, *FILES[kind]), task="tagging")
    assert found == Examples(["ba be", "#"], None, [["X", "Y"], ["Z"]], [["ba", "be"], ["#"]])


def test_a_column_beside_words_is_refused(tmp_path):
    with pytest.raises(
        DeftxError, match="nothing is read beside words to be tagged: leave out the column 'other'"
    ):
        read_examples(
            written(tmp_path, "a.tsv", "ba\tX\n"), Columns("words", "other", "tags"), task="tagging"
        )


def test_plain_text_is_read_where_no_labels_are_wanted(tmp_path):
    file = written(tmp_path, "a.txt", "ba  be\nbi\n")
    assert read_examples(file, task="tagging", labelled=False) == Examples(["ba  be", "bi"])
    with pytest.raises(DeftxError, match="has no column 'forms', only 'text'"):
        read_examples(file, Columns("forms", None, "tags"), task="tagging", labelled=False)


def test_words_with_tags_that_are_read_as_plain_text_are_warned_of(tmp_path):
    file = written(tmp_path, "a.txt", "ba X\nbe Y\n\nbi X\n")
    with pytest.warns(UserWarning, match="looks like words with tags: if so, call it .conll"):
        found = read_examples(file, task="tagging", labelled=False)
    assert found.texts == ["ba X", "be Y", "", "bi X"]


def test_a_no_break_space_is_part_of_a_word(tmp_path):
    found = read_examples(written(tmp_path, "a.txt", "10\u00a0000 X\nba Y\n"), task="tagging")
    assert found.parts == [["10\u00a0000", "ba"]]


def test_words_without_tags_are_read_where_no_labels_are_wanted(tmp_path):
    found = read_examples(
        written(tmp_path, "a.tsv", "ba\nbe\n\nbi\n"), task="tagging", labelled=False
    )
    assert found == Examples(["ba be", "bi"], parts=[["ba", "be"], ["bi"]])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.tsv", "ba\tX\nbe\n", "line 2: 'be' is no word and tag as on the other lines"),
        ("a.tsv", "ba\tX\n\tY\n", "line 2: .* is no word and tag"),
        (
            "a.tsv",
            "ba\nbe\n",
            "has no column 'tags', only 'words': separate each word from its tag by a tab",
        ),
        ("a.tsv", "Word\tTag\nba\tX\n", r"line 1: 'Word\\tTag' names columns: remove it"),
        ("a.conllu", "1\tba\tX\n", "line 1: .* is no word and tag"),
        (
            "a.jsonl",
            '{"words": ["ba", "be"], "tags": ["X"]}',
            "line 1: 2 words and 1 tags: give every word one",
        ),
        ("a.jsonl", '{"words": "ba be", "tags": ["X"]}', "line 1: 'words' is 'ba be', not a list"),
        ("a.jsonl", '{"words": [], "tags": []}', "line 1: 'words' is .., not a list"),
        ("a.txt", "ba be bi\n\nbo bu\n", "line 3: 2 columns, and line 1 has 3: is it plain text"),
    ],
)
def test_what_is_wrong_with_words_and_tags_is_named(tmp_path, name, content, said):
    with pytest.raises(DeftxError, match=said):
        read_examples(written(tmp_path, name, content), task="tagging")


def test_whole_texts_in_the_place_of_words_are_warned_of(tmp_path):
    with pytest.warns(
        UserWarning, match="most words in .* have spaces in them: are they whole texts"
    ):
        read_examples(written(tmp_path, "a.tsv", "ba be bi\tX\nbo bu\tY\n"), task="tagging")


@pytest.mark.parametrize("tags", [["B-PER", "I-PER", "O"], ["B", "I", "O"], ["I-X-Y", "O"]])
def test_tags_of_names_may_have_kinds_or_none(tags):
    assert TASKS["ner"].label_names(Examples(["ba be bi"], labels=[tags])) == tuple(sorted(tags))


@pytest.mark.parametrize("tags", [["PER", "O"], ["S-PER", "O"]])
def test_tags_that_mark_no_names_are_refused(tags):
    examples = Examples(["ba be"], labels=[tags], parts=[["ba", "be"]])
    with pytest.raises(
        DeftxError, match=rf"tag '{tags[0]}' is none of names, such as B-PER, I-PER and O"
    ):
        TASKS["ner"].label_names(examples)


def test_the_first_token_of_every_word_has_its_tag_in_exactly_one_window():
    """The tokenizer takes a word with a hyphen for three."""
    words = [["ba-be", *tiny.WORDS[:20], "bi-bo"], ["da"]]
    examples = Examples(
        [" ".join(row) for row in words], labels=[["X"] + ["Y"] * 20 + ["X"], ["Y"]], parts=words
    )
    encoded = TASKS["tagging"].encode(examples, TOKENIZER, 8, ("X", "Y"), True)
    assert max(len(each["input_ids"]) for each in encoded.inputs) == 8
    found = [
        (owner, word)
        for owner, row in zip(encoded.overflow_to_sample_mapping, encoded.word_ids, strict=True)
        for word in row
        if word >= 0
    ]
    assert found == [(0, number) for number in range(22)] + [(1, 0)]
    for row, targets, each in zip(encoded.word_ids, encoded.targets, encoded.inputs, strict=True):
        assert len(row) == len(targets) == len(each["input_ids"])
    first = encoded.inputs[0]["input_ids"]
    assert first[1:5] == [
        TOKENIZER.convert_tokens_to_ids(each) for each in ("ba", "<unk>", "be", "ba")
    ]
    assert encoded.targets[0] == [IGNORED, 0, IGNORED, IGNORED, 1, 1, 1, IGNORED]


def test_words_of_long_texts_get_the_tags_that_their_window_says(bases):
    kind, names = TASKS["tagging"], ("BACK", "FRONT")
    model = load_task_model(bases(), names, task=kind).eval()
    long = Examples([" ".join(tiny.WORDS[:30])], parts=[tiny.WORDS[:30]])
    ((tags,),) = predict(kind, model, TOKENIZER, long, 12)
    expected = []
    for start in range(0, 30, 10):
        ids = TOKENIZER(" ".join(tiny.WORDS[start : start + 10]), return_tensors="pt")
        expected += [names[each] for each in model(**ids).logits[0, 1:-1].argmax(-1).tolist()]
    assert tags == expected


def test_padding_on_the_left_changes_no_target():
    left = tiny.tokenizer()
    left.padding_side = "left"
    kind, examples = TASKS["tagging"], EXAMPLES["tagging"]
    batches = []
    for tokenizer in (TOKENIZER, left):
        objective = supervised(kind, examples, examples, ("BACK", "FRONT"), tokenizer, 24, "")
        batches.append(objective.collate(objective.train))
    kept = [batch["labels"][batch["attention_mask"].bool()] for batch in batches]
    assert torch.equal(*kept)
    assert not torch.equal(batches[0]["labels"], batches[1]["labels"])
    assert all(
        (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all() for batch in batches
    )


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("B-P I-P O B-L", {(0, 2, "P"), (3, 4, "L")}),
        ("B-P B-P", {(0, 1, "P"), (1, 2, "P")}),
        ("I-P I-P O I-L", {(0, 2, "P"), (3, 4, "L")}),
        ("B-P I-L I-L", {(0, 1, "P"), (1, 3, "L")}),
        ("NOUN O", set()),
        ("B I O", {(0, 2, "")}),
        ("", set()),
    ],
)
def test_spans_are_those_of_the_conll_evaluation(tags, found):
    assert spans(tags.split()) == found


@given(
    st.lists(st.tuples(*[st.sampled_from(["O", "B-P", "I-P", "B-L"])] * 2), min_size=1, max_size=20)
)
def test_span_f1_is_that_of_precision_and_recall(pairs):
    true, predicted = map(list, zip(*pairs, strict=True))
    right, made, there = (
        len(spans(true) & spans(predicted)),
        len(spans(predicted)),
        len(spans(true)),
    )
    precision, recall = right / max(made, 1), right / max(there, 1)
    expected = 2 * precision * recall / (precision + recall) if right else 0
    assert span_f1([true], [predicted]) == pytest.approx(expected)


# --- question answering ---


def asked(tmp_path, **row):
    row = {"question": "who?", "context": "the cat and the dog", **row}
    return read_examples(written(tmp_path, "a.jsonl", json.dumps(row)), task="question-answering")


@pytest.mark.parametrize(
    "answers",
    [
        {"text": ["dog", "the dog"], "answer_start": [16, 12]},
        ["dog", "the dog"],
        {"text": ["dog", "the dog"]},
    ],
)
def test_answers_are_read_in_every_form(tmp_path, answers):
    assert asked(tmp_path, answers=answers).labels == [[(16, "dog"), (12, "the dog")]]


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ("horse", "the answer 'horse' does not stand in the context"),
        ({"text": ["dog"], "answer_start": [3]}, "the answer 'dog' does not stand in the context"),
        ({"text": ["dog"], "answer_start": []}, "are not the places of 1 answers"),
        ([], "is no answer"),
        (None, "is no answer"),
        (3, "is no answer"),
    ],
)
def test_an_answer_that_is_none_is_an_error(tmp_path, answers, said):
    with pytest.raises(DeftxError, match=f"line 1: .*{said}"):
        asked(tmp_path, answers=answers)


def test_windows_cover_the_context_and_targets_are_where_the_answer_is():
    context = " ".join(tiny.WORDS[:40])
    examples = Examples(
        [" ".join(tiny.WORDS[:30])], [context], [[(context.index("mu na ne"), "mu na ne")]]
    )
    encoded = TASKS["question-answering"].encode(examples, TOKENIZER, 24, (), True)
    seen = {place for places in encoded.offset_mapping for place in places} - {(0, 0)}
    assert seen == {(3 * number, 3 * number + 2) for number in range(40)}
    assert all(len(each["input_ids"]) <= 24 for each in encoded.inputs)
    inside = [targets for targets in encoded.targets if targets != (0, 0)]
    assert inside
    for places, (first, last) in zip(encoded.offset_mapping, encoded.targets, strict=True):
        whole = {
            (context.index(word), context.index(word) + 2) for word in ("mu", "na", "ne")
        } <= set(places)
        assert whole == (last == first + 2)
        assert not whole or context[places[first][0] : places[last][1]] == "mu na ne"


@torch.no_grad()
def test_the_answer_is_the_most_probable_pair_in_order_over_all_windows(bases):
    kind = TASKS["question-answering"]
    model = load_task_model(bases(), (), task=kind).eval()
    examples = Examples(["ba"], [" ".join(tiny.WORDS[:30])], None)
    encoded = kind.encode(examples, TOKENIZER, 24, (), False)
    assert len(encoded.inputs) > 1
    best = ("", -1.0)
    for each, places in zip(encoded.inputs, encoded.offset_mapping, strict=True):
        outputs = model(**encoded.pad([each]))
        start, end = (
            logits[0].softmax(-1) for logits in (outputs.start_logits, outputs.end_logits)
        )
        for i, (first, _) in enumerate(places):
            for j, (_, last) in enumerate(places[i:], i):
                if (
                    places[i] != (0, 0)
                    and places[j] != (0, 0)
                    and float(start[i] * end[j]) > best[1]
                ):
                    best = examples.pairs[0][first:last], float(start[i] * end[j])
    ((text, chance),) = predict(kind, model, TOKENIZER, examples, 24)
    assert text == best[0]
    assert chance == pytest.approx(best[1], rel=1e-5)


def test_answers_are_compared_as_squad_does():
    f1, exact = TASKS["question-answering"].metrics.values()
    true = [[(0, "The cat!"), (0, "a black cat")], [(0, "dog")]]
    assert exact(true, ["cat", "the dogs"]) == 0.5
    assert f1(true, ["black cat", "cat"]) == 0.5
    assert f1(true, ["black", "dog"]) == pytest.approx((2 / 3 + 1) / 2)


# --- multiple choice ---


def test_options_that_a_question_does_not_have_change_nothing(bases):
    """Questions of two and three options in one batch are answered as each alone."""
    kind, examples = TASKS["multiple-choice"], EXAMPLES["multiple-choice"]
    model = load_task_model(bases(), (), task=kind).eval()
    together = predict(kind, model, TOKENIZER, examples, 24)
    alone = [
        predict(kind, model, TOKENIZER, examples.at([row]), 24)[0] for row in range(len(examples))
    ]
    assert [label for label, _ in together] == [label for label, _ in alone]
    assert [chance for _, chance in together] == pytest.approx(
        [chance for _, chance in alone], rel=1e-4
    )
    objective = supervised(kind, examples, examples, (), TOKENIZER, 24, "")
    objective.loss(model, objective.collate(objective.train)).backward()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("label", [2, -1, 0.5, "x", None])
def test_a_label_that_is_no_option_is_an_error(tmp_path, label):
    row = {"question": "ba?", "options": ["be", "bi"], "label": label}
    with pytest.raises(DeftxError, match=r"line 1: .*(number them from 0|is not a number)"):
        read_examples(written(tmp_path, "a.jsonl", json.dumps(row)), task="multiple-choice")


def test_questions_and_options_may_have_columns_of_other_names(tmp_path):
    row = {"premise": "ba?", "choices": ["be", "bi"], "answer": "1"}
    columns = Columns("premise", "choices", "answer")
    found = read_examples(
        written(tmp_path, "a.jsonl", json.dumps(row)), columns, task="multiple-choice"
    )
    assert found == Examples(["ba?"], None, [1], [["be", "bi"]])


# --- regression ---


@pytest.mark.parametrize("label", ["much", "", None, math.inf, "nan"])
def test_a_label_that_is_no_number_is_an_error(tmp_path, label):
    row = {"text": "ba", "label": label}
    with pytest.raises(DeftxError, match=r"line 1: .* in 'label' is not a number"):
        read_examples(written(tmp_path, "a.jsonl", json.dumps(row)), task="regression")


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=20))
def test_correlations_are_those_of_scipy(pairs):
    true, predicted = map(list, zip(*pairs, strict=True))
    if len({*true}) < 2 or len({*predicted}) < 2:
        assert pearson(true, predicted) == spearman(true, predicted) == 0
    else:
        assert pearson(true, predicted) == pytest.approx(pearsonr(true, predicted).statistic)
        assert spearman(true, predicted) == pytest.approx(spearmanr(true, predicted).statistic)


# --- generation ---


@pytest.fixture
def writer(bases):
    return load_task_model(bases("qwen"), (), task=TASKS["generation"]).eval()


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_loss_of_generation_is_that_of_the_written_tokens_alone(writer, side):
    tokenizer, examples = load_tokenizer(writer.name_or_path), EXAMPLES["generation"]
    tokenizer.padding_side = side
    objective = supervised(TASKS["generation"], examples, examples, (), tokenizer, 30, "")
    total, count = 0.0, 0
    for text, label in zip(examples.texts, examples.labels, strict=True):
        read = tokenizer(text)["input_ids"]
        ids = torch.tensor(
            [
                [
                    *read,
                    *tokenizer(label, add_special_tokens=False)["input_ids"],
                    tokenizer.eos_token_id,
                ]
            ]
        )
        chances = writer(ids).logits[0].log_softmax(-1)[len(read) - 1 : -1]
        total -= float(chances.gather(1, ids[0, len(read) :, None]).sum())
        count += len(chances)
    batch = objective.collate(objective.train)
    assert float(objective.loss(writer, batch)) == pytest.approx(total / count, rel=1e-5)
    assert set(objective.vocabulary_used.tolist()) == {
        *batch["input_ids"].flatten().tolist(),
        *batch["labels"].flatten().tolist(),
    } - {IGNORED}


@torch.no_grad()
def test_answers_are_written_greedily_in_batches_as_alone(writer):
    tokenizer, examples = load_tokenizer(writer.name_or_path), Examples(TEXTS)
    for text, (written,) in zip(
        TEXTS, predict(TASKS["generation"], writer, tokenizer, examples, 30), strict=True
    ):
        ids = tokenizer(text)["input_ids"]
        start = len(ids)
        while len(ids) < start + 15 and ids[-1] != tokenizer.eos_token_id:
            ids.append(int(writer(torch.tensor([ids])).logits[0, -1].argmax()))
        assert written == tokenizer.decode(ids[start:], skip_special_tokens=True).strip()


@torch.no_grad()
@pytest.mark.parametrize("shape", tiny.ENCODER_DECODERS)
def test_an_encoder_decoder_writes_what_is_most_probable_for_what_its_encoder_reads(bases, shape):
    """In batches as alone, whatever the base was to write first, and its loss is that of the tokens
    to write."""
    kind, examples = TASKS["generation"], EXAMPLES["generation"]
    model, tokenizer = (
        load_task_model(bases(shape), (), task=kind).eval(),
        load_tokenizer(bases(shape)),
    )
    objective = supervised(kind, examples, examples, (), tokenizer, 30, "")
    total, count, end = 0.0, 0, tokenizer.eos_token_id
    written = predict(kind, model, tokenizer, Examples(TEXTS), 30)
    for text, label, (found,) in zip(TEXTS, examples.labels, written, strict=True):
        read = torch.tensor([tokenizer(text)["input_ids"]])
        ids = torch.tensor([[*tokenizer(label, add_special_tokens=False)["input_ids"], end]])
        before = model.prepare_decoder_input_ids_from_labels(labels=ids)
        chances = model(input_ids=read, decoder_input_ids=before).logits[0].log_softmax(-1)
        total, count = total - float(chances.gather(1, ids.T).sum()), count + ids.shape[1]
        ids = before[:, :1]
        while ids.shape[1] <= 15 and (ids.shape[1] == 1 or ids[0, -1] != end):
            ids = torch.cat(
                [ids, model(input_ids=read, decoder_input_ids=ids).logits[:, -1:].argmax(-1)], dim=1
            )
        assert found == tokenizer.decode(ids[0, 1:], skip_special_tokens=True).strip()
    batch = objective.collate(objective.train)
    assert float(objective.loss(model, batch)) == pytest.approx(total / count, rel=1e-5)


def test_a_base_that_does_not_continue_texts_cannot_write(bases):
    examples = EXAMPLES["generation"]
    with pytest.raises(
        DeftxError,
        match="cannot write texts, as a base for generation has to: give one such as Qwen",
    ):
        fit_task(bases(), examples, examples, TaskVectorConfig(task="generation"))


@pytest.mark.parametrize("shape", ["qwen", "bart"])
def test_a_writer_learns_to_say_what_its_examples_say(bases, shape):
    """Texts are answered by what their last vowel is; k is large, since the base is tiny."""
    texts = tiny.sentences(120, seed=1)
    examples = Examples(texts, labels=["ba" if text[-1] in "ei" else "zu" for text in texts])
    training = TaskTrainingConfig(
        learning_rate=1e-2, batch_size=16, length=24, epochs=30, max_steps=240, evaluate_every=80
    )
    settings = TaskVectorConfig(task="generation", k="50%", method="lt-sft", training=training)
    phi = fit_task(bases(shape), examples, examples, settings)
    assert phi.head.tensors == {}
    assert phi.provenance.log["phase2"].best_score > 0.8


@given(st.lists(st.tuples(*[st.text("ab c", max_size=8)] * 2), min_size=1, max_size=5))
def test_chrf_is_that_of_a_plain_count(pairs):
    true, predicted = map(list, zip(*pairs, strict=True))
    shares = []
    for n in range(1, 7):
        right = there = made = 0
        for pair in pairs:
            ours, theirs = (
                [text.replace(" ", "")[i:][:n] for i in range(len(text.replace(" ", "")) - n + 1)]
                for text in pair
            )
            there, made = there + len(ours), made + len(theirs)
            for gram in theirs:
                if gram in ours:
                    ours.remove(gram)
                    right += 1
        if there and made:
            shares.append((right / made, right / there))
    precision, recall = (
        (sum(each) / len(shares) for each in zip(*shares, strict=True)) if shares else (0, 0)
    )
    expected = 5 * precision * recall / (4 * precision + recall) if precision + recall else 0
    assert chrf(true, predicted) == pytest.approx(expected)
    assert exact_match(true, true) == 1


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_an_empty_text_is_read_where_the_tokenizer_puts_nothing_around_it(bases, task):
    tokenizer = tiny.tokenizer(decoder=True)
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer("")["input_ids"] == []
    kind, texts = TASKS[task], ["", "ba be", " "]
    model = load_task_model(bases("qwen"), () if task == "regression" else ("a", "b"), task=kind)
    first, _, last = predict(kind, model, tokenizer, Examples(texts), 16)
    assert first == last
    assert first[-1] == pytest.approx(
        predict(kind, model, tokenizer, Examples(["<s>"]), 16)[0][-1], abs=1e-5
    )


def test_places_of_answers_are_counted_after_the_padding_on_whichever_side_it_is():
    kind, tokenizer = TASKS["question-answering"], tiny.tokenizer()
    examples = Examples(["ba", "ba"], ["be bi bo", "be bi bo bu da de"], [[(3, "bi")], [(3, "bi")]])
    for side in ("right", "left"):
        tokenizer.padding_side = side
        objective = supervised(kind, examples, examples, (), tokenizer, 24, "")
        batch = objective.collate(list(objective.train))
        found = batch["input_ids"].gather(1, batch["labels"])
        tokens = [[tokenizer.decode(token) for token in row] for row in found]
        assert tokens == [["bi", "bi"]] * 2


def test_a_text_that_is_cut_still_ends_as_the_model_was_taught():
    tokenizer = tiny.tokenizer(decoder=True)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer.backend_tokenizer.post_processor = None
    kind, end = TASKS["generation"], tokenizer("\n", add_special_tokens=False)["input_ids"]
    assert len(end) == 1
    encoded = kind.encode(Examples(["ba be", "ba be bi bo bu da de di"]), tokenizer, 8, (), False)
    short, cut = (each["input_ids"] for each in encoded.inputs)
    assert (len(cut), cut[-1:]) == (4, end)
    assert len(short) < 4
