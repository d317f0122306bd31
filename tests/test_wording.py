from das_gym.wording import counted


def test_number_with_its_noun():
    assert [counted(n, "mask") for n in (0, 1, 2, 1204)] == ["0 masks", "1 mask", "2 masks", "1,204 masks"]
