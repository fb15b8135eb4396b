"""What a run asks of an object store, counted at the server: the figures that docs/scale.md reckons with."""

from collections import Counter, defaultdict
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from maskmill.pipelines.cli import main
from tests.support import stores
from tests.support.stores import words

OUT = "/corpora/counted"


class Counting(stores.Proxy):
    """Object, or what the names begin with → kind of request → how many. LOOK lists one name at most."""

    def __init__(self, server):
        super().__init__(server, self._count)
        self.asked = defaultdict(Counter)

    def _count(self, _number, method, path):
        parts = urlsplit(path)
        query = parse_qs(parts.query)
        name = unquote(parts.path)
        if "list-type" in query:
            method = "LOOK" if query.get("max-keys") == ["1"] else "LIST"
            name = f"{name.rstrip('/')}/{query['prefix'][0]}"
        self.asked[name.rstrip("/")][method] += 1


@pytest.fixture(scope="module")
def asked(photos, tiny_settings, tmp_path_factory):
    """What a run of four photographs in two shards asked for, and what the same command again."""
    counted = []
    with stores.s3_server() as server, pytest.MonkeyPatch.context() as patched:
        for number, path in enumerate(sorted(photos.rglob("*.png"))[:4]):
            body = path.read_bytes()
            stores.client_of(server).put_object(Bucket="photos", Key=f"counted/{number}.png", Body=body)
        for _ in range(2):
            with Counting(server) as proxy:
                stores.use(patched, proxy.address)
                assert main(words("s3://photos/counted", "s3://corpora/counted", tiny_settings)) == 0
            counted.append(proxy.asked)
    return counted


def test_an_image_is_one_request(asked):
    images = {name: counts for name, counts in asked[0].items() if name.startswith("/photos/counted/")}
    assert len(images) == 4
    assert all(counts == {"GET": 1} for counts in images.values())


def test_a_shard_is_three_requests_to_commit_and_five_to_close(asked):
    for shard in range(2):
        commit = Counter(HEAD=1, LOOK=1, PUT=1)  # is it there; as a folder, perhaps; if not, put
        close = Counter(HEAD=2, GET=3)  # opened for its columns, in two pieces, and for its checksum
        assert asked[0][f"{OUT}/shards/shard-{shard:06d}.parquet"] == commit + close


def test_folders_are_listed_a_few_times_a_run_whatever_their_size(asked):
    first, again = asked
    assert first["/photos/counted"]["LIST"] == again["/photos/counted"]["LIST"] == 1
    assert first[f"{OUT}/shards"]["LIST"] <= 8
    assert again[f"{OUT}/shards"]["LIST"] <= 10


def test_the_same_command_again_asks_for_no_image_and_no_shard(asked):
    assert not [name for name in asked[1] if name.startswith(("/photos/counted/", f"{OUT}/shards/"))]
