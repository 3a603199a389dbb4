"""Messages that name what is near are made in bounded time, whatever is asked for."""

from time import process_time

from deftx.errors import did_you_mean, unknown


def test_the_nearest_name_is_found_in_whatever_case():
    assert (
        did_you_mean("INDONESAN", ["indonesian", "minangkabau"]) == " (did you mean 'indonesian'?)"
    )
    assert did_you_mean("xyz", ["indonesian", "minangkabau"]) == ""


def test_long_names_and_many_names_take_no_longer():
    began = process_time()
    assert did_you_mean("ab" * 500_000, ["ab" * 400_000]) == ""
    assert did_you_mean("ab", ["ab" * 400_000]) == ""
    message = str(
        unknown("language", "a" * 1_000_000, (f"name {number}" for number in range(100_000)))
    )
    assert "and 99,000 others" in message
    assert len(message) < 20_000
    assert process_time() - began < 2
