"""Character n-grams and logistic regression: what is to be had without any pretrained model."""

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from deftx.data.examples import Examples


def train_ngrams(examples: Examples) -> Pipeline:
    """A classifier of 1- to 5-grams of characters within words (tf-idf), from labelled examples."""
    features = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 5), sublinear_tf=True, min_df=2)
    return make_pipeline(features, LogisticRegression(max_iter=1000)).fit(
        _lines(examples), examples.labels
    )


def predict_ngrams(model: Pipeline, examples: Examples) -> list[str]:
    """The labels that `train_ngrams`'s classifier gives to examples."""
    return [str(label) for label in model.predict(_lines(examples))]


def _lines(examples: Examples) -> list[str]:
    """One text an example: pairs are joined by a line break."""
    pairs = examples.pairs or [""] * len(examples.texts)
    return [
        f"{text}\n{pair}".strip().lower() for text, pair in zip(examples.texts, pairs, strict=True)
    ]
