"""The page pool: shared prefixes are correct, and no page has two writing owners."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from rollouts.engine.embedded.pages import PAGE, CacheFull, PagePool

COUNT = 9
WORDS = [[word] * PAGE for word in (1, 2)]  # streams made of few different pages collide often


class Stream:
    """Tokens fed so far and their pages, as the engine keeps them."""

    def __init__(self, tokens: list[int], pages: list[int]) -> None:
        self.tokens, self.pages = tokens, pages


class PagesUnderAnEngine(RuleBasedStateMachine):
    """Streams start, grow, share and end as in the engine; ``written`` records what each page holds."""

    streams = Bundle("streams")

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(COUNT)
        self.open: list[Stream] = []
        self.written: dict[int, tuple[int, ...]] = {}  # page -> the whole prefix up to its end: what attention needs

    def holders(self, page: int) -> int:
        return sum(stream.pages.count(page) for stream in self.open)

    def grow(self, stream: Stream, tokens: list[int]) -> bool:
        """Feed ``tokens``; False if the pool is full."""
        for token in tokens:
            if len(stream.tokens) == len(stream.pages) * PAGE:
                try:
                    page = self.pool.allocate()
                except CacheFull:
                    assert len({page for s in self.open for page in s.pages}) == COUNT
                    return False
                assert self.holders(page) == 0, "a page with an owner was given away"
                self.written.pop(page, None)
                stream.pages.append(page)
            stream.tokens.append(token)
            if len(stream.tokens) % PAGE == 0:
                index = len(stream.tokens) // PAGE - 1
                self.written[stream.pages[index]] = tuple(stream.tokens)
                self.pool.publish(stream.pages, index, stream.tokens)
        return True

    @rule(target=streams, words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=4), rest=st.integers(0, PAGE - 1))
    def begin(self, words: list[list[int]], rest: int) -> Stream:
        prompt = [token for word in words for token in word] + [3] * rest
        hits, asked = self.pool.hits, self.pool.asked
        pages = self.pool.match(prompt)
        assert len(pages) * PAGE < len(prompt), "at least one token must be fed, or there are no logits"
        for index, page in enumerate(pages):
            assert self.written[page] == tuple(prompt[: (index + 1) * PAGE])
        assert (self.pool.hits - hits, self.pool.asked - asked) == (len(pages) * PAGE, len(prompt))
        stream = Stream(prompt[: len(pages) * PAGE], pages)
        self.open.append(stream)
        self.grow(stream, prompt[len(stream.tokens) :])
        return stream

    @rule(stream=streams, word=st.sampled_from(WORDS))
    def continue_with(self, stream: Stream, word: list[int]) -> None:
        if stream in self.open:
            self.grow(stream, word)

    @rule(stream=consumes(streams))
    def end(self, stream: Stream) -> None:
        if stream in self.open:
            self.open.remove(stream)
            self.pool.release(stream.pages)

    @precondition(lambda self: self.open)
    @rule()
    def change_weights(self) -> None:
        for stream in self.open:
            self.pool.release(stream.pages)
        self.open.clear()
        self.pool.forget_all()
        self.written.clear()  # so that any later match of an old page fails in begin()

    @invariant()
    def pages_are_exclusive_or_shared_by_content(self) -> None:
        for stream in self.open:
            for index, page in enumerate(stream.pages):
                end = (index + 1) * PAGE
                if end <= len(stream.tokens):
                    assert self.written[page] == tuple(stream.tokens[:end]), "a page changed under its owner"
                else:
                    assert self.holders(page) == 1, "two streams write to one page"

    @invariant()
    def every_page_is_referenced_or_can_be_had(self) -> None:
        held = {page for stream in self.open for page in stream.pages}
        assert all(self.pool._refs[page] == self.holders(page) for page in range(COUNT))
        assert len(self.pool._free) + len(self.pool._idle) == COUNT - len(held)
        assert not held & (set(self.pool._free) | set(self.pool._idle))


TestPagesUnderAnEngine = PagesUnderAnEngine.TestCase
TestPagesUnderAnEngine.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)


def fill(pool: PagePool, tokens: list[int]) -> list[int]:
    """A stream that has been fed ``tokens`` (whole pages)."""
    pages = pool.match([*tokens, 0])
    for index in range(len(pages), len(tokens) // PAGE):
        pages.append(pool.allocate())
        pool.publish(pages, index, tokens)
    return pages


def chain(count: int, first: int = 0) -> list[int]:
    return [first + i for i in range(count) for _ in range(PAGE)]


def test_eviction_takes_the_ends_of_chains_first():
    pool = PagePool(4)
    pages = fill(pool, chain(4))
    pool.release(pages)
    other = [pool.allocate(), pool.allocate()]
    assert other == [pages[3], pages[2]]
    assert pool.match([*chain(4), 0]) == pages[:2]


def test_the_least_recently_used_content_goes_first():
    pool = PagePool(3)
    old, young = fill(pool, chain(1, first=1)), fill(pool, chain(1, first=2))
    pool.release(old)
    pool.release(young)
    pool.release(pool.match([*chain(1, first=1), 0]))  # used again
    pool.allocate()
    assert pool.allocate() == young[0]
    assert pool.match([*chain(1, first=1), 0]) == old


def test_a_whole_prompt_is_never_taken_from_the_cache():
    pool = PagePool(4)
    pages = fill(pool, chain(2))
    assert pool.match(chain(2)) == pages[:1]


def test_twins_that_were_filled_at_once_stay_private_but_do_not_break_the_first_ones_chain():
    pool = PagePool(8)
    tokens = chain(2)
    first, second = [pool.allocate(), pool.allocate()], [pool.allocate(), pool.allocate()]
    for index in range(2):
        pool.publish(first, index, tokens)
        pool.publish(second, index, tokens)
    assert pool.match([*tokens, 0]) == first
    pool.release(second)
    assert sorted([pool.allocate(), pool.allocate()]) == sorted(second)  # at once free: nobody could find them


def test_a_full_pool_says_what_to_do():
    pool = PagePool(1)
    pool.allocate()
    with pytest.raises(CacheFull, match=r"lower rollouts\.concurrency"):
        pool.allocate()
