from das_gym.wording import counted, first_line


def test_number_with_its_noun():
    assert [counted(n, "mask") for n in (0, 1, 2, 1204)] == ["0 masks", "1 mask", "2 masks", "1,204 masks"]


def test_first_line_of_an_error():
    assert first_line(ValueError("\nbroken\nlines")) == "broken"
    assert first_line(KeyError()) == "KeyError"
