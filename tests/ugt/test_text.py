"""Item texts and their vectors."""

import numpy as np
import pytest

from ugt.artifacts import CREDITS, ITEMS, PEOPLE, read_table
from ugt.text import WIDTH, Encoder, TextConfig, item_text, item_texts


def test_a_text_tells_title_year_genres_people_and_story(catalogue):
    texts = item_texts(
        read_table(catalogue / "items", ITEMS), read_table(catalogue / "people", PEOPLE), read_table(catalogue / "credits", CREDITS), TextConfig()
    )
    assert texts[7] == "Film 7 (1957). War. directed by Person nm003. with Person nm011. a story"
    assert texts[1] == "Film 1"


def test_a_text_is_never_empty():
    assert item_text({"item_id": "B00X", "title": " "}) == "B00X"


@pytest.fixture(scope="module")
def encoder():
    return Encoder(TextConfig())


def test_vectors_are_unit_in_order_and_mean_something(encoder):
    texts = ["a murder in a small town, a detective investigates", "two clowns at a children's birthday party", "the inspector looks for the killer", ""]
    x = encoder.encode(texts)
    assert x.shape == (4, WIDTH)
    assert x.dtype == np.float32
    assert np.allclose(np.linalg.norm(x, axis=1), 1, atol=1e-5)
    assert x[0] @ x[2] > x[0] @ x[1] + 0.2
    assert encoder.encode([]).shape == (0, WIDTH)


def test_a_text_alone_has_the_vector_it_has_in_a_batch(encoder):
    texts = [f"{'long ' * i} story" for i in range(20)]
    batch = encoder.encode(texts)
    # padding and other shapes of the matrix products move the last bits
    assert np.abs(encoder.encode([texts[11]])[0] - batch[11]).max() < 1e-5
    assert (encoder.encode(texts) == batch).all()
