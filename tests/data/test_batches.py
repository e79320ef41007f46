from collections import Counter

import pytest
import torch
from torch.nn.functional import pad

from certtrain.data import Augmentation, Batches
from certtrain.data.batches import gather_crops
from certtrain.errors import DataError

BOTH = Augmentation(flip=True, crop_padding=2)


def numbered(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Image n holds n everywhere, and has label n."""
    labels = torch.arange(count)
    return labels.byte().view(count, 1, 1, 1).expand(count, 2, 4, 4).contiguous(), labels


def varied(count: int, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, (count, channels, 4, 4), generator=generator).byte()


def make(count: int, batch_size: int, seed: int = 0, **options) -> Batches:
    images, labels = numbered(count)
    return Batches(images, labels, batch_size=batch_size, seed=seed, **options)


def labels_of(batches: Batches, epoch: int) -> list[int]:
    return [label for step in range(batches.steps_per_epoch) for label in batches.batch(epoch, step)[1].tolist()]


@pytest.mark.parametrize("flip", [False, True])
def test_every_crop_is_a_slice_of_the_padded_image(flip):
    image = torch.arange(32, dtype=torch.uint8).view(1, 2, 4, 4)
    seen = image.flip(-1) if flip else image
    padded = pad(seen.float(), (2, 2, 2, 2), mode="replicate")
    for down in range(5):
        for right in range(5):
            shift = torch.tensor([[down - 2], [right - 2]])
            got = gather_crops(image, torch.tensor([0]), shift, torch.tensor([flip]))
            assert torch.equal(got.float(), padded[:, :, down : down + 4, right : right + 4])


def test_a_crop_by_hand():
    image = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8)
    got = gather_crops(image, torch.tensor([0]), torch.tensor([[1], [0]]), torch.tensor([True]))
    assert got.tolist() == [[[[4, 3], [4, 3]]]]


def test_height_and_width_are_not_confused():
    image = torch.arange(6, dtype=torch.uint8).view(1, 1, 2, 3)
    got = gather_crops(image, torch.tensor([0]), torch.tensor([[0], [1]]), torch.tensor([False]))
    assert got.tolist() == [[[[1, 2, 2], [4, 5, 5]]]]


def test_each_example_has_its_own_change():
    images = varied(3)
    index, shifts, flips = torch.tensor([2, 0]), torch.tensor([[0, 1], [-1, 0]]), torch.tensor([True, False])
    got = gather_crops(images, index, shifts, flips)
    for place in range(2):
        alone = gather_crops(images, index[[place]], shifts[:, [place]], flips[[place]])
        assert torch.equal(got[[place]], alone)
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_all_changes_turn_up_equally_often():
    image = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4)
    batches = Batches(image.expand(1000, 1, 4, 4), torch.zeros(1000).long(), batch_size=1000, seed=0, augmentation=BOTH)
    found: Counter[bytes] = Counter()
    for epoch in range(5):
        x, _ = batches.batch(epoch, 0)
        found.update(bytes(row) for row in x.mul(255).round().byte().flatten(1).tolist())
    # 25 offsets and 2 orientations, 100 of each expected.
    assert len(found) == 50
    assert min(found.values()) > 60
    assert max(found.values()) < 150


@pytest.mark.parametrize(
    ("augmentation", "variants"), [(Augmentation(flip=True), 2), (Augmentation(crop_padding=1), 9)]
)
def test_a_part_that_is_off_does_nothing(augmentation, variants):
    image = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4)
    batches = Batches(
        image.expand(300, 1, 4, 4), torch.zeros(300).long(), batch_size=300, seed=0, augmentation=augmentation
    )
    assert len(batches.batch(0, 0)[0].flatten(1).unique(dim=0)) == variants


@pytest.mark.parametrize("augmentation", [Augmentation(), BOTH])
def test_batches_have_the_promised_types(augmentation):
    images = varied(5)
    batches = Batches(images, torch.arange(5), batch_size=3, seed=0, augmentation=augmentation)
    x, y = batches.batch(0, 0)
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((3, 3, 4, 4), torch.float32, (3,), torch.int64)
    assert x.min() >= 0
    assert x.max() <= 1
    assert x.max() > 0.5


def test_without_augmentation_pixels_are_levels_over_255():
    images = varied(5)
    x, y = Batches(images, torch.arange(5), batch_size=4, seed=0).batch(2, 0)
    assert torch.equal(x, (images[y].double() / 255).float())


@pytest.mark.parametrize("augmentation", [Augmentation(), BOTH])
def test_images_and_labels_stay_together(augmentation):
    for step in range(3):
        x, y = make(13, 4, augmentation=augmentation).batch(1, step)
        assert torch.equal(x.mul(255).round().long(), y.view(-1, 1, 1, 1).expand(-1, 2, 4, 4))


@pytest.mark.parametrize("augmentation", [Augmentation(), BOTH])
def test_a_batch_is_a_pure_function(augmentation):
    def fresh() -> Batches:
        return Batches(varied(10), torch.arange(10), batch_size=4, seed=3, augmentation=augmentation)

    used = fresh()
    asked = [(0, 0), (1, 2), (0, 1), (5, 1), (0, 0), (1, 2)]
    for epoch, step in asked:
        for one, other in zip(used.batch(epoch, step), fresh().batch(epoch, step), strict=True):
            assert torch.equal(one, other)


def test_batches_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    make(10, 4, augmentation=BOTH).batch(0, 0)
    assert torch.equal(before, torch.get_rng_state())


def test_an_epoch_is_the_whole_set_in_a_new_order():
    batches = make(20, 6)
    first, second = labels_of(batches, 0), labels_of(batches, 1)
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert first != list(range(20))


def test_the_seed_decides_order_and_augmentation():
    assert labels_of(make(20, 6, seed=0), 0) != labels_of(make(20, 6, seed=1), 0)
    image = varied(1).expand(8, 3, 4, 4)
    x = [
        Batches(image, torch.zeros(8).long(), batch_size=8, seed=seed, augmentation=BOTH).batch(0, 0)[0]
        for seed in (0, 1)
    ]
    assert not torch.equal(*x)


def test_augmentation_changes_with_epoch_and_step():
    image = varied(1).expand(8, 3, 4, 4)
    batches = Batches(image, torch.zeros(8).long(), batch_size=4, seed=0, augmentation=BOTH)
    x = [batches.batch(epoch, step)[0] for epoch, step in ((0, 0), (0, 1), (1, 0))]
    assert not torch.equal(x[0], x[1])
    assert not torch.equal(x[0], x[2])


@pytest.mark.parametrize(
    ("count", "batch_size", "steps"),
    [(20, 5, 4), (20, 6, 4), (21, 5, 4), (22, 5, 5), (3, 8, 1), (2, 1, 2), (1, 1, 1), (9, 8, 1)],
)
def test_steps_per_epoch(count, batch_size, steps):
    batches = make(count, batch_size)
    assert batches.steps_per_epoch == steps
    sizes = [len(batches.batch(0, step)[1]) for step in range(steps)]
    assert min(sizes) > 1 or batch_size == 1
    assert count - sum(sizes) in (0, 1)


def test_the_left_out_example_changes():
    batches = make(9, 4)
    assert len({min(set(range(9)) - set(labels_of(batches, epoch))) for epoch in range(10)}) > 2


@pytest.mark.parametrize("step", [-1, 4])
def test_a_step_outside_the_epoch_is_refused(step):
    with pytest.raises(IndexError, match="4 steps"):
        make(20, 6).batch(0, step)
    with pytest.raises(IndexError, match="4 steps"):
        make(20, 6).plain_batch(step)


@pytest.mark.parametrize(("count", "sizes"), [(12, [4, 4, 4]), (14, [4, 4, 4, 2]), (13, [4, 4, 5]), (3, [3]), (5, [5])])
def test_plain_batches_give_every_image_once_without_augmentation(count, sizes):
    batches = make(count, 4, augmentation=BOTH, rank=0, ranks=2)
    found = [batches.plain_batch(step) for step in range(batches.steps_per_epoch)]
    assert [len(x) for x in found] == sizes
    numbers = (torch.cat(found) * 255).round().long()
    assert sorted(numbers[:, 0, 0, 0].tolist()) == list(range(count))
    assert all(torch.equal(x, x[:, :1, :1, :1].expand_as(x)) for x in numbers.split(1))


def test_plain_batches_have_one_order_and_unchanged_images():
    images = varied(40)
    batches = Batches(images, torch.zeros(40, dtype=torch.int64), batch_size=40, seed=0, augmentation=BOTH)
    first = batches.plain_batch(0)
    batches.batch(5, 0)
    assert torch.equal(batches.plain_batch(0), first)
    assert sorted(x.sum().item() for x in first) == sorted(x.sum().item() for x in images.float().div(255))
    assert not torch.equal(first, images.float().div(255))


@pytest.mark.parametrize(
    ("count", "batch_size", "message"), [(0, 4, "empty"), (1, 4, "one example"), (4, 0, "batch_size is 0")]
)
def test_impossible_batches_are_refused(count, batch_size, message):
    with pytest.raises(DataError, match=message):
        make(count, batch_size)


def test_lengths_must_agree():
    with pytest.raises(DataError, match="4 images but 3 labels"):
        Batches(varied(4), torch.arange(3), batch_size=2, seed=0)


def test_negative_padding_is_refused():
    with pytest.raises(DataError, match="crop_padding is -1"):
        Augmentation(crop_padding=-1)


def test_batches_move_to_the_device_asked_for():
    x, y = make(4, 2, device="cpu").batch(0, 0)
    assert x.device.type == y.device.type == "cpu"
