"""Order of images: every image once an epoch, independent of what other steps or seeds draw."""

from contseg.benchmark.train.rng import Order, derive


def test_an_epoch_visits_every_image_at_most_once_and_drops_the_last_small_batch() -> None:
    order = Order(images=10, batch=3, seed=0, step=1)
    epoch = [i for u in range(3) for _, i in order[u]]
    assert len(epoch) == 9 == len(set(epoch))
    assert {e for u in range(3) for e, _ in order[u]} == {0}
    assert order[3][0][0] == 1


def test_fewer_images_than_a_batch_still_fill_it() -> None:
    order = Order(images=3, batch=8, seed=0, step=0)
    assert order.per_epoch == 1
    drawn = [i for _, i in order[0]]
    assert len(drawn) == 8
    assert {drawn.count(i) for i in range(3)} == {2, 3}


def test_orders_are_functions_of_seed_step_and_epoch() -> None:
    first = Order(100, 10, 0, 0)
    assert first[3] == Order(100, 10, 0, 0)[3]
    assert first[3] != Order(100, 10, 1, 0)[3]
    assert first[3] != Order(100, 10, 0, 1)[3]
    assert [i for _, i in first[3]] != [i for _, i in first[13]]


def test_seeds_of_purposes_are_literal() -> None:
    assert derive(0, "order", 1) == derive(0, "order", 1)
    assert derive(0, "order", 11) != derive(0, "order1", 1)
    assert 0 <= derive(7, "x") < 2**63
