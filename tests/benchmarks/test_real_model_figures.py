from benchmarks.real_model.figures import draw_landscape, draw_speed, single_layers


def test_figures_are_drawn_from_the_table_and_the_records(tmp_path):
    draw_landscape(tmp_path / "layers.png")
    draw_speed(tmp_path / "speed.png")
    for name in ("layers", "speed"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_essential_layers_of_text_and_of_answering():
    added = single_layers()
    assert all(losses.shape == (30,) for losses in added.values())
    assert {int(layer) for layer in added["text"].argsort()[-5:]} == {0, 1, 11, 28, 29}
    assert {int(layer) for layer in added["answers about images"].argsort()[-4:]} == {0, 1, 11, 29}
