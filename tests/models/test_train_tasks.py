import pytest
import torch

from models.train_tasks import ALPHABET, SEPARATOR, Copy, Recall, Text, generator_of


def draw(task, batch=16, step=0, **options):
    return task(batch, generator_of(0, "training", step), **options)


@pytest.mark.parametrize("seqlen", [3, 8, 33])
def test_copy_repeats_the_string_and_counts_only_the_second_one(seqlen):
    batch = draw(Copy(seqlen))
    n = (seqlen - 1) // 2
    string, separator, again = batch.ids[:, :n], batch.ids[:, n], batch.ids[:, n + 1 :]
    assert batch.ids.shape == (16, 2 * n + 1)
    assert torch.equal(string, again)
    assert (separator == SEPARATOR).all()
    assert string.min() >= 1
    assert string.max() <= ALPHABET
    assert torch.equal(batch.targets(), again.flatten())


@pytest.mark.parametrize("seqlen", [4, 18, 160])
def test_recall_asks_for_every_key_once_and_counts_only_the_values(seqlen):
    batch = draw(Recall(seqlen))
    n = seqlen // 4
    assert batch.ids.shape == (16, 4 * n)
    answers = batch.targets().view(16, n)
    for row, answer in zip(batch.ids, answers, strict=True):
        keys, values = row[: 2 * n : 2].tolist(), row[1 : 2 * n : 2].tolist()
        asked = row[2 * n :: 2].tolist()
        assert len(set(keys)) == n
        assert sorted(asked) == sorted(keys)
        assert answer.tolist() == [dict(zip(keys, values, strict=True))[key] for key in asked]
        assert max(keys) < 2 * n <= min(values) <= max(values) < 4 * n


def test_text_is_cut_into_windows_and_its_last_tenth_is_held_out():
    task = Text(range(200), 20)
    for held_out, low, high in ((False, 0, 180), (True, 180, 200)):
        ids = draw(task, batch=300, held_out=held_out).ids
        assert torch.equal(ids, ids[:, :1] + torch.arange(20))
        assert (ids.min(), ids.max()) == (low, high - 1)
    batch = draw(task)
    assert torch.equal(batch.targets(), batch.ids[:, 1:].flatten())


@pytest.mark.parametrize("task", [Copy(9), Recall(16), Text(range(200), 20)])
def test_a_batch_follows_from_seed_part_and_step(task):
    state = torch.get_rng_state()
    assert torch.equal(draw(task).ids, draw(task).ids)
    assert not torch.equal(draw(task).ids, draw(task, step=1).ids)
    assert not torch.equal(draw(task).ids, task(16, generator_of(1, "training", 0)).ids)
    assert not torch.equal(draw(task).ids, task(16, generator_of(0, "held out", 0)).ids)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Copy(2), "at least 3 for copying, got 2"),
        (lambda: Recall(3), "at least 4 for recall, got 3"),
        (lambda: Text(range(99), 10), "99 tokens, and windows of 10 need 100"),
        (lambda: Text(range(99), 1), "at least 2, got 1"),
    ],
)
def test_sizes_that_do_not_fit_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
